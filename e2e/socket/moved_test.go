// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shunt/e2e/rig"
	"shunt/lab"
)

// frontendMoved: a load-balancer address moves from one service to another in one change.
// Sockets connected to the old endpoint are destroyed, since it serves that address no
// more.
func frontendMoved(t *testing.T, c *cluster, name string, n int) {
	other := name + "-other"
	c.apply(rig.Service(name, n, rig.Everywhere(n)), rig.SlicesOf(name, rig.Up(c.web[0])...),
		rig.Service(other, n+50), rig.SlicesOf(other, rig.Up(c.web[1])...))
	var clients []*talker
	for _, w := range connectedUDP {
		dst := rig.At(w.of(rig.BalancerIPs(n)), rig.ServicePort)
		k := w.openTo(t, c.client, dst)
		k.ask(dst)
		clients = append(clients, k)
	}
	moved := rig.Service(other, n+50)
	rig.Everywhere(n)(moved)
	c.m.RemoveService(name)
	c.apply(moved)
	for _, k := range clients {
		k.wantDestroyed()
		dst := rig.At(k.w.of(rig.BalancerIPs(n)), rig.ServicePort)
		if err := k.Connect(dst); err != nil {
			t.Fatal(err)
		}
		k.own = 0
		k.wantKept(dst, "web-1")
	}
}

// portRenamed: the ports of a service get other names. No socket is affected.
func portRenamed(t *testing.T, c *cluster, name string, n int) {
	all := []*lab.Pod{c.web[0], c.web[1], c.web[2]}
	objects := append(rig.SlicesOf(name, rig.Up(all...)...), rig.Service(name, n))
	c.apply(objects...)
	connected, unconnected := c.clients(n), map[*talker]string{}
	for range 5 {
		for _, w := range udpWays {
			k := w.open(t, c.client)
			unconnected[k] = k.askTo(rig.VIP(n, w.family))
		}
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Service:
			for i := range o.Spec.Ports {
				o.Spec.Ports[i].Name = "new-" + o.Spec.Ports[i].Name
			}
		case *discoveryv1.EndpointSlice:
			for i := range o.Ports {
				renamed := "new-" + *o.Ports[i].Name
				o.Ports[i].Name = &renamed
			}
		}
	}
	c.apply(objects...)
	time.Sleep(quiet) // only time shows that nothing happens
	for k, server := range connected {
		k.wantKept(rig.VIP(n, k.w.family), server)
	}
	for k, server := range unconnected {
		if got := k.askTo(rig.VIP(n, k.w.family)); got != server {
			t.Errorf("%s: %s answers, before it was %s", k.w, got, server)
		}
	}
}

// addressMoved: an address moves from one service to another, and is then removed, while
// both services stay. Datagrams follow it, also those of connected sockets. Sockets of the
// services' other addresses and TCP connections are not affected.
func addressMoved(t *testing.T, c *cluster, name string, n int) {
	other := name + "-other"
	ips := rig.ExternalIPs(n)
	with, without := rig.Service(name, n, rig.Everywhere(n)), rig.Service(name, n)
	taking := rig.Service(other, n+50)
	taking.Spec.ExternalIPs = with.Spec.ExternalIPs
	c.apply(with, rig.SlicesOf(name, rig.Up(c.web[0])...), rig.Service(other, n+50), rig.SlicesOf(other, rig.Up(c.web[1])...))
	stays := c.clients(n, c.client)
	tcp := ways[0].openTo(t, c.client, rig.At(ips[0], rig.ServicePort))
	tcp.ask(rig.At(ips[0], rig.ServicePort))
	var connected, unconnected []*talker
	for _, w := range connectedUDP {
		dst := rig.At(w.of(ips), rig.ServicePort)
		k := w.openTo(t, c.client, dst)
		k.ask(dst)
		connected = append(connected, k)
	}
	for _, w := range udpWays {
		k := w.open(t, c.client)
		k.askTo(rig.At(w.of(ips), rig.ServicePort))
		unconnected = append(unconnected, k)
	}
	c.apply(without, taking)
	for _, k := range connected {
		k.wantDestroyed()
		if err := k.Connect(rig.At(k.w.of(ips), rig.ServicePort)); err != nil {
			t.Fatal(err)
		}
		k.own = 0
		k.wantKept(rig.At(k.w.of(ips), rig.ServicePort), "web-1")
	}
	for _, k := range unconnected {
		if got := k.askTo(rig.At(k.w.of(ips), rig.ServicePort)); got != "web-1" {
			t.Errorf("%s: %s answers, want web-1", k.w, got)
		}
	}
	c.apply(rig.Service(other, n+50))
	for _, k := range connected {
		k.wantDestroyed()
	}
	for _, k := range unconnected {
		wantNoTranslation(t, k, rig.At(k.w.of(ips), rig.ServicePort))
	}
	for k, server := range stays {
		k.wantKept(rig.VIP(n, k.w.family), server)
	}
	tcp.wantKept(rig.At(ips[0], rig.ServicePort), "web-0")
}

// wantNoTranslation sends to an address without a service, and must get no answer.
func wantNoTranslation(t *testing.T, k *talker, dst netip.AddrPort) {
	t.Helper()
	if err := k.SendTo(dst, line("x")); err != nil {
		t.Errorf("%s: sendto an address that is nobody's: %v", k.w, err)
	}
	if data, from, err := k.Recv(quiet); err == nil {
		t.Errorf("%s: sendto an address that is nobody's: %q answers from %v", k.w, data, from)
	}
}
