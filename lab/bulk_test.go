// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"shunt/lab"
)

// TestHold: connections stay open, can be asked again, share source ports, and a broken one
// is counted.
func TestHold(t *testing.T) {
	c := newCluster(t)
	for i, addr := range c.web.Addrs() {
		for _, network := range []string{"tcp", "udp"} {
			second := c.web.Serve(network+[]string{"4", "6"}[i], 9000)
			h, err := c.client.Hold(network, lab.HoldOptions{Count: 50, FirstPort: 20000, Timeout: 400 * time.Millisecond, Tries: 2}, at(addr, 8080), at(addr, 9000))
			check(t, err)
			if s := h.First; s.Asked != 100 || s.Answered != 100 || s.Servers["web-0"] != 100 || s.Clients[c.client.Addrs()[i]] != 100 {
				t.Fatalf("%s to %v: %+v", network, addr, s)
			}
			s, err := h.Ask()
			check(t, err)
			if s.Answered != 100 {
				t.Errorf("%s to %v, again: %+v", network, addr, s)
			}
			check(t, second.Stop())
			s, err = h.Ask()
			check(t, err)
			if s.Asked != 100 || s.Answered != 50 || len(s.Errors) == 0 || s.FirstError == "" {
				t.Errorf("%s to %v with one server gone: %+v", network, addr, s)
			}
			if s, err = h.Ask(); err != nil || s.Asked != 50 {
				t.Errorf("%s to %v, of which half have failed: %+v, %v", network, addr, s, err)
			}
			check(t, h.Close(true))
			if _, err := h.Ask(); err == nil {
				t.Error("what was closed can be asked")
			}
		}
	}
}

// TestTransfer: bytes arrive in both directions, also where a router on the path has a
// smaller MTU, which both ends learn.
func TestTransfer(t *testing.T) {
	c := newCluster(t)
	router := c.Node("n3")
	host, api := router.HostPod("router"), c.n2.HostPod("kubelet")
	for i, addr := range c.api.Addrs() {
		x, err := c.client.StartTransfer(at(addr, 8080), lab.TransferOptions{Up: 3 << 20, Down: 5<<20 + 1, Pause: 4<<20 + 7})
		check(t, err)
		check(t, x.Paused())
		if n, err := x.Bytes(); err != nil || n != 4<<20+7 {
			t.Errorf("paused at %d, %v", n, err)
		}
		check(t, x.Resume())
		r, err := x.Wait()
		check(t, err)
		if r.Up != 3<<20 || r.Down != 5<<20+1 || r.Server != "api-0" || r.ClientSeen.Addr() != c.client.Addrs()[i] ||
			r.ClientMTU != 1500 || r.ServerMTU != 1500 {
			t.Errorf("%+v", r)
		}
		if n, err := x.Bytes(); err != nil || n != 8<<20+1 {
			t.Errorf("moved %d, %v", n, err)
		}
		here, there := c.n1.PodCIDRs()[i], c.n2.PodCIDRs()[i]
		c.n1.HostPod("host" + here.Addr().String()).SetRoute(lab.Route{Dst: there, Via: router})
		api.SetRoute(lab.Route{Dst: here, Via: router})
		host.SetRoute(lab.Route{Dst: there, Via: c.n2, MTU: 1400})
		host.SetRoute(lab.Route{Dst: here, Via: c.n1, MTU: 1300})
		x, err = c.client.StartTransfer(at(addr, 8080), lab.TransferOptions{Up: 3 << 20, Down: 3 << 20})
		check(t, err)
		if r, err = x.Wait(); err != nil || r.ClientMTU != 1400 || r.ServerMTU != 1300 {
			t.Errorf("%+v, %v; want path MTUs of 1400 and 1300", r, err)
		}
	}
	if _, err := c.client.StartTransfer(at(c.api.Addr4(), 1), lab.TransferOptions{Up: 1}); err == nil {
		t.Error("a transfer to a closed port has begun")
	}
}

// TestFlood: packets that bypass the client's stack arrive, with correct checksums and the
// sources asked for.
func TestFlood(t *testing.T) {
	c := newCluster(t)
	host := c.n1.HostPod("kubelet")
	server := host.Serve("udp", 9000)
	listener := host.Serve("tcp", 9000)
	from := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	for i, dst := range []netip.Addr{c.n1.Addr4(), c.n1.Addr6()} {
		sent, err := c.outside.Flood(t.Context(), c.n1, lab.Packets{Network: "udp", Dst: at(dst, 9000), From: from[i], Count: 200})
		check(t, err)
		waitFor(t, func() bool { n, err := server.Count(); return err == nil && n == uint64(200*(i+1)) })
		if sent != 200 {
			t.Errorf("sent %d", sent)
		}
		if _, err := c.outside.Flood(t.Context(), c.n1, lab.Packets{Network: "tcp", Dst: at(dst, 9000), From: from[i], Count: 200}); err != nil {
			t.Error(err)
		}
	}
	if n, err := listener.Count(); err != nil || n != 0 {
		t.Errorf("%d requests by SYNs alone, %v", n, err)
	}
	dst := at(c.n1.Addr4(), 9000)
	if _, err := c.outside.Flood(t.Context(), c.n1, lab.Packets{Network: "udp", Dst: dst, From: from[1], Count: 1}); err == nil {
		t.Error("from IPv6 to IPv4")
	}
	if _, err := c.outside.Flood(t.Context(), c.n1, lab.Packets{Network: "sctp", Dst: dst, From: from[0], Count: 1}); err == nil {
		t.Error("SCTP")
	}
}

// TestLink: a second network between a node and a client, made while the first is in use.
func TestLink(t *testing.T) {
	c := newCluster(t)
	host := c.n1.HostPod("kubelet")
	host.Serve("tcp", 9000)
	c.n1.Link(c.outside, "eth1")
	for i, dst := range c.n1.LinkAddrs() {
		if a := c.outside.Ask("tcp", at(dst, 9000)); a.Err != nil || a.ClientSeen.Addr() != c.outside.LinkAddrs()[i] {
			t.Errorf("%v: %+v", dst, a)
		}
	}
	more := netip.MustParsePrefix("192.168.100.150/32")
	ask := func() error {
		return c.outside.Request("tcp", at(more.Addr(), 9000), lab.RequestOptions{Timeout: 300 * time.Millisecond}).Err
	}
	c.n1.AddAddr("eth0", more)
	check(t, ask())
	c.n1.RemoveAddr("eth0", more)
	if ask() == nil {
		t.Error("an address that was taken away answers")
	}
}

// waitFor polls until holds returns true.
func waitFor(t *testing.T, holds func() bool) {
	t.Helper()
	for range 3000 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("waited in vain")
}
