// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"errors"
	"net/netip"
	"os/exec"
	"syscall"
	"testing"

	"shunt/e2e/rig"
)

// TestFailedReconnect: the hook of connect() runs before the kernel looks up a route. If
// connect() fails after the hook, a UDP socket stays connected as before: it keeps its peer
// and the peer's address, and is destroyed when that peer's endpoint is gone.
func TestFailedReconnect(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...),
		rig.Service("far", 2), rig.SlicesOf("far", rig.Up(c.web[1])...))
	for _, a := range c.web[1].Addrs() {
		if _, stderr, code := rig.RunCommand(t, exec.Command("nsenter", "--net="+c.client.NetnsPath(),
			"ip", "route", "add", "unreachable", a.String())); code != 0 {
			t.Fatalf("make %v unreachable: %s", a, stderr)
		}
	}
	var clients []*talker
	for _, w := range connectedUDP {
		pod := rig.At(w.of(c.web[1].Addrs()), rig.ServerPort)
		for _, wrong := range [][]netip.AddrPort{
			{rig.VIP(2, w.family)}, {pod}, {rig.VIP(2, w.family), pod, rig.VIP(2, w.family), rig.VIP(2, w.family)},
		} {
			k := w.openTo(t, c.client, rig.VIP(1, w.family))
			k.ask(rig.VIP(1, w.family))
			for _, dst := range wrong {
				if err := k.Connect(dst); !errors.Is(err, syscall.EHOSTUNREACH) {
					t.Fatalf("%s: connect to %v, which has no route: %v", w, dst, err)
				}
				k.wantKept(rig.VIP(1, w.family), "web-0")
				k.askTo(rig.VIP(1, w.family))
			}
			clients = append(clients, k)
		}
	}
	c.apply(rig.SlicesOf("web", rig.Up(c.web[2])...))
	for _, k := range clients {
		k.wantDestroyed()
		if err := k.Connect(rig.VIP(1, k.w.family)); err != nil {
			t.Fatalf("%s: %v", k.w, err)
		}
		k.own = 0
		k.wantKept(rig.VIP(1, k.w.family), "web-2")
	}
}

// TestFailedTCP: a TCP socket whose connect() failed may be connected to another service.
// getpeername() then returns that service, and the socket is destroyed with that service's
// endpoint.
func TestFailedTCP(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "--destroy-tcp-sockets")
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...),
		rig.Service("silent", 2), rig.SlicesOf("silent", rig.UpAt(9999, c.web[1])...))
	var clients []*talker
	for _, w := range ways[:3] {
		k := w.open(t, c.client)
		if err := k.Connect(rig.VIP(2, w.family)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("%s: connect to a port without a server: %v", w, err)
		}
		if err := k.Connect(rig.VIP(1, w.family)); err != nil {
			t.Fatalf("%s: %v", w, err)
		}
		k.wantKept(rig.VIP(1, w.family), "web-0")
		clients = append(clients, k)
	}
	c.remove("silent")
	for _, k := range clients {
		k.wantKept(rig.VIP(1, k.w.family), "web-0")
	}
	c.apply(rig.SlicesOf("web", rig.Up(c.web[2])...))
	for _, k := range clients {
		k.wantDestroyed()
	}
}

// TestSameEndpoint: two services have the same endpoint. Its answer shows the address of
// the service that was asked, after any sequence of calls.
func TestSameEndpoint(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("a", 1), rig.SlicesOf("a", rig.Up(c.web[0])...),
		rig.Service("b", 2), rig.SlicesOf("b", rig.Up(c.web[0])...))
	for _, w := range connectedUDP {
		a, b := rig.VIP(1, w.family), rig.VIP(2, w.family)
		pod := rig.At(w.of(c.web[0].Addrs()), rig.ServerPort)
		steps := func(name string, do func(k *talker)) {
			t.Run(w.String()+"/"+name, func(t *testing.T) { do(w.open(t, c.client)) })
		}
		connect := func(k *talker, dst netip.AddrPort) {
			k.t.Helper()
			if err := k.Connect(dst); err != nil {
				k.t.Fatal(err)
			}
		}
		steps("disconnected", func(k *talker) {
			connect(k, a)
			k.ask(a)
			if err := k.Disconnect(); err != nil {
				k.t.Fatal(err)
			}
			k.own = 0
			k.askTo(b)
			k.askTo(a)
			k.askTo(b)
		})
		steps("answer after the disconnect", func(k *talker) {
			if err := k.Bind(netip.AddrPortFrom(w.any(), 5300)); err != nil { // keeps the port
				k.t.Fatal(err)
			}
			connect(k, a)
			if err := k.Send(line("late")); err != nil {
				k.t.Fatal(err)
			}
			if err := k.Disconnect(); err != nil {
				k.t.Fatal(err)
			}
			k.check(k.hear(), "late", a)
		})
		steps("connected to one, then to the other", func(k *talker) {
			for _, dst := range []netip.AddrPort{a, b, a, b} {
				connect(k, dst)
				k.wantPeer(dst)
				k.ask(dst)
			}
		})
		steps("the endpoint itself, unconnected", func(k *talker) {
			for range 2 {
				for _, dst := range []netip.AddrPort{pod, a, pod, pod, b, pod} {
					k.askTo(dst)
				}
			}
		})
		steps("the endpoint itself, disconnected", func(k *talker) {
			connect(k, a)
			k.ask(a)
			if err := k.Disconnect(); err != nil {
				k.t.Fatal(err)
			}
			k.own = 0
			k.askTo(pod)
			k.askTo(a)
			k.askTo(pod)
		})
		steps("unconnected before", func(k *talker) {
			k.askTo(a)
			connect(k, b)
			k.ask(b)
			connect(k, pod)
			k.wantPeer(pod)
			k.ask(pod)
			connect(k, a)
			k.ask(a)
		})
	}
}
