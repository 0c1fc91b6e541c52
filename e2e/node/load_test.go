// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// hold opens connections, all of which must be answered.
func hold(t *testing.T, from *lab.Pod, network string, opts lab.HoldOptions, dsts ...netip.AddrPort) *lab.Held {
	t.Helper()
	if opts.Timeout == 0 {
		opts.Timeout = 20 * time.Second // for a busy machine
	}
	h, err := from.Hold(network, opts, dsts...)
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, "at first", h.First, opts.Count*len(dsts))
	return h
}

func wantAll(t *testing.T, when string, s lab.HeldSummary, n int) {
	t.Helper()
	if s.Answered != n || len(s.Errors) > 0 {
		t.Errorf("%s: %d of %d connections were answered, errors %v (%s)", when, s.Answered, n, s.Errors, s.FirstError)
	}
}

func askAll(t *testing.T, when string, h *lab.Held, n int) lab.HeldSummary {
	t.Helper()
	s, err := h.Ask()
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, when, s, n)
	return s
}

// TestManyToOneBackend: one client has 60,000 concurrent connections to one backend. A
// process may not hold so many: there are four on each side.
func TestManyToOneBackend(t *testing.T) {
	c := startCluster(t, lab.Network{})
	const (
		parts = 4
		port  = 7000
	)
	many := rig.InShort(6_000, 60_000)
	crowd := []*lab.Pod{c.outside}
	c.near.ServeShared("tcp", port)
	for i := range parts - 1 {
		crowd = append(crowd, c.outside.Beside(fmt.Sprintf("outside-%d", i)))
		c.near.Beside(fmt.Sprintf("near-%d", i)).ServeShared("tcp", port)
	}
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.UpAt(port, c.near)...))
	start := time.Now()
	held := make([]*lab.Held, parts)
	for i, from := range crowd {
		opts := lab.HoldOptions{Count: many / parts, FirstPort: uint16(2000 + i*many/parts)}
		held[i] = hold(t, from, "tcp", opts, c.nodePortAt(1, 0))
	}
	made := time.Since(start)
	for _, h := range held {
		if s := askAll(t, "again", h, many/parts); s.Clients[c.outside.Addr4()] != many/parts {
			t.Errorf("the server saw %v", s.Clients)
		}
	}
	t.Logf("%d connections made in %v, asked again in %v", many, made.Round(time.Millisecond), (time.Since(start) - made).Round(time.Millisecond))
	for _, h := range held {
		if err := h.Close(true); err != nil {
			t.Error(err)
		}
	}
}

// TestFlood: a million first packets from random sources break no established connection,
// and other clients are still served.
func TestFlood(t *testing.T) {
	c := startCluster(t, lab.Network{})
	c.backendServices()
	const each = 125 // each protocol, family and service: 1,000 in all
	var held []*lab.Held
	eachWay(func(network string, family int) {
		opts := lab.HoldOptions{Count: each}
		if network == "udp" { // a flood makes the network lose other datagrams
			opts.Timeout, opts.Tries = 2*time.Second, 10
		}
		h := hold(t, c.other, network, opts, c.nodePortAt(1, family), c.nodePortAt(2, family))
		askAll(t, "before the flood", h, 2*each) // a UDP flow is confirmed by the next datagram after an answer: a flood cannot evict it then
		held = append(held, h)
	})
	from := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("2001:db8::/32")}
	million := rig.InShort(100_000, 1_000_000)
	start := time.Now()
	done := make(chan error, 1)
	go func() {
		for i := range 16 {
			network, family, n := protocols[i/2%2], i%2, 1+i/4%2
			dst := frontends[i%2].of(c, n, family)
			p := lab.Packets{Network: network, Dst: dst, From: from[family], Count: million / 16}
			if sent, err := c.outside.Flood(t.Context(), c.n1, p); err != nil || sent < p.Count*9/10 {
				done <- fmt.Errorf("sent %d of %d to %v: %w", sent, p.Count, dst, err)
				return
			}
		}
		done <- nil
	}()
	rounds := 0
	for flooding := true; flooding; rounds++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			flooding = false
		default:
			for i, h := range held[:2] { // only TCP, which retransmits packets lost in the flood
				askAll(t, fmt.Sprintf("under the flood, %s", families[i]), h, 2*each)
			}
			time.Sleep(50 * time.Millisecond) // otherwise these packets outnumber those of the flood
		}
	}
	t.Logf("%d packets in %v; every connection was asked %d times meanwhile", million, time.Since(start).Round(time.Millisecond), rounds-1)
	for _, h := range held {
		askAll(t, "after the flood", h, 2*each)
	}
	eachWay(func(network string, family int) {
		for _, b := range backends {
			if a := ask(c.other, network, c.nodePortAt(b.service, family), 0); a.Err != nil || a.Server != b.server(c).Name() {
				t.Errorf("after the flood, %s %s %s: %q, %v", network, families[family], b.name, a.Server, a.Err)
			}
		}
	})
	reasons := c.d.Reasons()
	t.Logf("reasons: %v", reasons)
}

// TestBackendsReplacedUnderLoad: while endpoints change, every connection is answered by
// one that served when it was made.
func TestBackendsReplacedUnderLoad(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	more := []*lab.Pod{c.near, c.far, c.n1.Pod("near-2"), c.n2.Pod("far-2")}
	serve(rig.ServerPort, more[2:]...)
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(more...)...))
	var traffic []*lab.Hammering
	eachWay(func(network string, family int) {
		opts := lab.HammerOptions{Count: 1 << 20, Rate: 200, Timeout: 20 * time.Second}
		traffic = append(traffic, c.outside.StartHammer(network, c.nodePortAt(1, family), opts))
	})
	for round := range rig.InShort(20, 40) {
		c.apply(rig.SlicesOf("web", rig.Up(more[round%4], more[(round+1+round/4%3)%4])...))
	}
	for _, h := range traffic {
		s, err := h.Stop()
		if err != nil {
			t.Fatal(err)
		}
		if s.Done < 20 || s.Answered != s.Done || len(s.Servers) != len(more) {
			t.Errorf("%d of %d answered by %v, errors %v (%s)", s.Answered, s.Done, s.Servers, s.Errors, s.FirstError)
		}
	}
}

// TestSharedBackends: one client has connections to many services at once, from the same
// source ports, and all services have the same two endpoints. No connection gets another's
// bytes, and none stalls; the same holds with the ports of connections that have just
// ended.
func TestSharedBackends(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	const services = 6
	for n := 1; n <= services; n++ {
		name := fmt.Sprintf("web-%d", n)
		c.m.Put(rig.Service(name, n, rig.Everywhere(n)), rig.SlicesOf(name, rig.Up(c.near, c.far)...))
	}
	c.apply()
	eachWay(func(network string, family int) {
		// Two halves of the services alternate: a client does not reuse a port for the same
		// destination at once.
		var dsts [2][]netip.AddrPort
		for n := 1; n <= services; n++ {
			for _, f := range frontends {
				dsts[n%2] = append(dsts[n%2], f.of(c, n, family))
			}
		}
		const ports = 25
		all := ports * len(dsts[0])
		for round := range 6 {
			opts := lab.HoldOptions{Count: ports, FirstPort: 20000}
			first := hold(t, c.outside, network, opts, dsts[round%2]...)
			second := hold(t, c.outside, network, opts, dsts[1-round%2]...)
			for range 2 {
				askAll(t, fmt.Sprintf("%s/%s, round %d", network, families[family], round), first, all)
				s := askAll(t, fmt.Sprintf("%s/%s, round %d", network, families[family], round), second, all)
				if len(s.Servers) != 2 {
					t.Errorf("all of %d connections were answered by %v", all, s.Servers)
				}
			}
			if err := first.Close(true); err != nil {
				t.Error(err)
			}
			again := hold(t, c.outside, network, opts, dsts[round%2]...)
			askAll(t, "beside those that came again", second, all)
			for _, h := range []*lab.Held{second, again} {
				if err := h.Close(true); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// TestPortsAfterFIN: a client reuses a source port for another service with the same
// endpoint, after the first connection ended by FINs.
func TestPortsAfterFIN(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	const services = 8
	for n := 1; n <= services; n++ {
		name := fmt.Sprintf("web-%d", n)
		c.m.Put(rig.Service(name, n, rig.Everywhere(n)), rig.SlicesOf(name, rig.Up(c.near, c.far)...))
	}
	c.apply()
	for family := range families {
		for n := 1; n <= services; n++ {
			for _, f := range frontends {
				h := hold(t, c.outside, "tcp", lab.HoldOptions{Count: 100, FirstPort: 25000}, f.of(c, n, family))
				askAll(t, f.name, h, 100)
				if err := h.Close(false); err != nil {
					t.Error(err)
				}
			}
		}
	}
}
