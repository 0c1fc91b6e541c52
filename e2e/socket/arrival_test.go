// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"shunt/e2e/rig"
	"shunt/maps"
)

// TestArrivalTeachesNothing: a datagram from a frontend's own address changes nothing for
// the socket that receives it: what the socket sends to that address goes to the service.
// Such a datagram may be forged, or translated by conntrack entries of an earlier
// kube-proxy.
func TestArrivalTeachesNothing(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.web[0])...))
	node := []netip.Addr{c.n1.Addr4(), c.n1.Addr6()}
	for i, w := range udpWays {
		for j, from := range []netip.AddrPort{rig.VIP(1, w.family), rig.At(w.of(rig.BalancerIPs(1)), rig.ServicePort),
			rig.At(w.of(node), rig.NodePortOf(1))} {
			for _, inUse := range []bool{false, true} {
				k := w.open(t, c.client)
				own := uint16(5400 + 10*i + j)
				if err := k.Bind(netip.AddrPortFrom(w.any(), own)); err != nil {
					t.Fatal(err)
				}
				if inUse {
					k.askTo(from)
				}
				for range 3 {
					if err := c.n1.Do(func() error { return sendAs(from, rig.At(w.of(c.client.Addrs()), own)) }); err != nil {
						t.Fatalf("send as %v: %v", from, err)
					}
					if data, sender, err := k.Recv(5 * time.Second); err != nil || sender != w.asked(from) {
						t.Fatalf("%s: received %q from %v (%v), want it from %v", w, data, sender, err, w.asked(from))
					}
					if got := k.askTo(from); got != "web-0" {
						t.Errorf("%s: %v is answered by %s", w, from, got)
					}
				}
				_ = k.Close()
			}
		}
	}
}

// sendAs sends a datagram from any address, even one that the calling thread's network
// namespace does not have. The hooks do not see the socket.
func sendAs(from, to netip.AddrPort) error {
	family, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if from.Addr().Is6() {
		family, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddrOf(from)); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("forged"), 0, sockaddrOf(to))
}

func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// TestLocalPort: a process of the node uses a port with the number of a node port. A server's
// datagrams to that port reach the process if the two have exchanged datagrams within two
// minutes. Datagrams of another pod from the same source port always reach the service.
func TestLocalPort(t *testing.T) {
	t.Parallel()
	rig.NeedOwnNetns(t)
	c := startCluster(t)
	c.apply(rig.Service("web", 1, rig.WithNodePort(1)), rig.SlicesOf("web", rig.Up(c.web[0])...))
	other := c.n1.Pod("same-port")
	for i, w := range udpWays {
		own := rig.At(w.of([]netip.Addr{c.n1.Addr4(), c.n1.Addr6()}), rig.NodePortOf(1))
		server, port := w.open(t, c.client), uint16(5500+i)
		if err := server.Bind(netip.AddrPortFrom(w.any(), port)); err != nil {
			t.Fatal(err)
		}
		process := w.open(t, c.host)
		if err := process.Bind(own); err != nil {
			t.Fatal(err)
		}
		if got := server.askTo(own); got != "web-0" {
			t.Fatalf("%s: before the process has said anything, the node port is answered by %s", w, got)
		}
		_ = server.Close()
		server = w.open(t, c.client) // a socket without the flow
		if err := server.Bind(netip.AddrPortFrom(w.any(), port)); err != nil {
			t.Fatal(err)
		}
		hears := func(k *talker, what string, from netip.AddrPort) {
			t.Helper()
			if data, sender, err := k.Recv(5 * time.Second); err != nil || string(data) != what || sender != w.asked(from) {
				t.Fatalf("%s: received %q from %v (%v), want %q from %v", w, data, sender, err, what, w.asked(from))
			}
		}
		sends := func(k *talker, to netip.AddrPort, what string) {
			t.Helper()
			if err := k.SendTo(to, []byte(what)); err != nil {
				t.Fatalf("%s: send to %v: %v", w, to, err)
			}
		}
		at := rig.At(w.of(c.client.Addrs()), port)
		for range 2 {
			sends(process, at, "question")
			hears(server, "question", own)
			sends(server, own, "answer")
			hears(process, "answer", at)
			stranger := w.open(t, other)
			if err := stranger.Bind(netip.AddrPortFrom(w.any(), port)); err != nil {
				t.Fatal(err)
			}
			if got := stranger.askTo(own); got != "web-0" {
				t.Errorf("%s: another pod's datagram is answered by %q, want the service", w, got)
			}
			_ = stranger.Close()
		}
		c.setLocalPort(own.Port(), port, 100*time.Second)
		sends(server, own, "late answer")
		hears(process, "late answer", at)
		c.setLocalPort(own.Port(), port, 121*time.Second)
		if got := server.askTo(own); got != "web-0" {
			t.Errorf("%s: two minutes after, the node port is answered by %s", w, got)
		}
		_ = process.Close() // the next round uses its port
	}
}

// setLocalPort sets the age of the last datagram between two ports. Map local_ports must have
// the sender's entry and one receiver's.
func (c *cluster) setLocalPort(own, other uint16, age time.Duration) {
	c.t.Helper()
	set, err := maps.Load(c.d.Root)
	if err != nil {
		c.t.Fatal(err)
	}
	defer set.Close()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		c.t.Fatal(err)
	}
	m, found := set.Map(maps.NameLocalPorts), 0
	err = maps.EachEntry(m, func(k *maps.LocalPortKey, _ *uint64) error {
		if maps.HostPort(k.Own) != own || maps.HostPort(k.Other) != other {
			return nil
		}
		found++
		return m.Put(*k, uint64(now.Nano())-uint64(age))
	})
	if err != nil || found != 2 {
		c.t.Fatalf("map local_ports has %d entries for ports %d and %d (%v), want the sender's and the receiver's", found, own, other, err)
	}
}
