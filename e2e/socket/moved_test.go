package socket_test

import (
	"net/netip"
	"testing"
)

// frontendMoved: a load-balancer address goes from one service to another in one
// change. Who is connected to the old endpoint is told, since it serves no more.
func frontendMoved(t *testing.T, c *cluster, name string, n int) {
	other := name + "-other"
	c.apply(service(name, n, everywhere(n)), slicesOf(name, up(c.web[0])...),
		service(other, n+50), slicesOf(other, up(c.web[1])...))
	var clients []*talker
	for _, w := range connectedUDP {
		dst := at(w.of(balancerIPs(n)), servicePort)
		k := w.openTo(t, c.client, dst)
		k.ask(dst)
		clients = append(clients, k)
	}
	moved := service(other, n+50)
	everywhere(n)(moved)
	c.m.removeService(name)
	c.apply(moved)
	for _, k := range clients {
		k.wantDestroyed()
		dst := at(k.w.of(balancerIPs(n)), servicePort)
		if err := k.Connect(dst); err != nil {
			t.Fatal(err)
		}
		k.own = 0
		k.wantKept(dst, "web-1")
	}
}

// addressMoved: an address goes from one service to another, and then away, while
// both serve on. Datagrams follow it, whatever the socket was told before; those to
// the services' other addresses and TCP connections stay.
func addressMoved(t *testing.T, c *cluster, name string, n int) {
	other := name + "-other"
	ips := externalIPs(n)
	with, without := service(name, n, everywhere(n)), service(name, n)
	taking := service(other, n+50)
	taking.Spec.ExternalIPs = with.Spec.ExternalIPs
	c.apply(with, slicesOf(name, up(c.web[0])...), service(other, n+50), slicesOf(other, up(c.web[1])...))
	stays := c.clients(n, c.client)
	tcp := ways[0].openTo(t, c.client, at(ips[0], servicePort))
	tcp.ask(at(ips[0], servicePort))
	var connected, unconnected []*talker
	for _, w := range connectedUDP {
		dst := at(w.of(ips), servicePort)
		k := w.openTo(t, c.client, dst)
		k.ask(dst)
		connected = append(connected, k)
	}
	for _, w := range udpWays {
		k := w.open(t, c.client)
		k.askTo(at(w.of(ips), servicePort))
		unconnected = append(unconnected, k)
	}
	c.apply(without, taking)
	for _, k := range connected {
		k.wantDestroyed()
		if err := k.Connect(at(k.w.of(ips), servicePort)); err != nil {
			t.Fatal(err)
		}
		k.own = 0
		k.wantKept(at(k.w.of(ips), servicePort), "web-1")
	}
	for _, k := range unconnected {
		if got := k.askTo(at(k.w.of(ips), servicePort)); got != "web-1" {
			t.Errorf("%s: %s answers, want web-1", k.w, got)
		}
	}
	c.apply(service(other, n+50))
	for _, k := range connected {
		k.wantDestroyed()
	}
	for _, k := range unconnected {
		wantNoTranslation(t, k, at(k.w.of(ips), servicePort))
	}
	for k, server := range stays {
		k.wantKept(vip(n, k.w.family), server)
	}
	tcp.wantKept(at(ips[0], servicePort), "web-0")
}

// wantNoTranslation sends to an address that is nobody's and wants no answer.
func wantNoTranslation(t *testing.T, k *talker, dst netip.AddrPort) {
	t.Helper()
	if err := k.SendTo(dst, line("x")); err != nil {
		t.Errorf("%s: sendto an address that is nobody's: %v", k.w, err)
	}
	if data, from, err := k.Recv(quiet); err == nil {
		t.Errorf("%s: sendto an address that is nobody's: %q answers from %v", k.w, data, from)
	}
}
