// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// stuck makes several connections, checks that the same server answers all of them, and
// returns its name.
func (w way) stuck(t *testing.T, from *lab.Pod, dst netip.AddrPort) string {
	t.Helper()
	server := ""
	for range 12 { // without affinity, three endpoints give the same server with a chance of 1 in 3^11
		a := w.ask(from, dst)
		if err := w.checkAnswer(a, dst); err != nil {
			t.Fatalf("%s: %s asks %v: %v", w, from.Name(), dst, err)
		}
		if server != "" && a.Server != server {
			t.Fatalf("%s: %s asks %v: %s answers, before it was %s", w, from.Name(), dst, a.Server, server)
		}
		server = a.Server
	}
	return server
}

// TestAffinity: a client keeps its endpoint, through every frontend of the service port and
// from every source port. A client is a network namespace: each pod is one client, and all
// processes in the node's namespace together are one.
func TestAffinity(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1, rig.Everywhere(1), rig.WithAffinity(3600)), rig.SlicesOf("web", rig.Up(c.web...)...))
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	node := []netip.Addr{c.n1.Addr4(), c.n1.Addr6()}
	for _, w := range ways {
		frontends := []netip.AddrPort{rig.VIP(1, w.family), rig.At(w.of(rig.BalancerIPs(1)), rig.ServicePort),
			rig.At(w.of(rig.ExternalIPs(1)), rig.ServicePort), rig.At(w.of(node), rig.NodePortOf(1))}
		for _, from := range []*lab.Pod{c.client, c.host, c.web[0]} {
			first := w.stuck(t, from, frontends[0])
			for _, f := range frontends[1:] {
				if got := w.stuck(t, from, f); got != first {
					t.Errorf("%s: %s reaches %s at %v and %s at %v", w, from.Name(), first, frontends[0], got, f)
				}
			}
		}
	}
	t.Run("node port on loopback", func(t *testing.T) {
		rig.NeedOwnNetns(t)
		for _, w := range ways {
			local := rig.At(w.of(loopback), rig.NodePortOf(1))
			if a, b := w.stuck(t, c.host, rig.VIP(1, w.family)), w.stuck(t, c.host, local); a != b {
				t.Errorf("%s: the node reaches %s at its cluster IP and %s at %v", w, a, b, local)
			}
		}
	})
	t.Run("two processes of the node are one client", func(t *testing.T) {
		other := c.n1.HostPod("other")
		for _, w := range ways {
			if a, b := w.stuck(t, c.host, rig.VIP(1, w.family)), w.stuck(t, other, rig.VIP(1, w.family)); a != b {
				t.Errorf("%s: one process reaches %s, another %s", w, a, b)
			}
		}
	})
	t.Run("pods are clients of their own", func(t *testing.T) {
		// If all pods were one client, a new pod's first connection would be counted as
		// affinity_kept.
		for i := range 3 {
			pod := c.n1.Pod(fmt.Sprintf("new-%d", i))
			for _, w := range []way{ways[0], ways[1], ways[3], ways[7]} {
				before := c.d.Reasons()
				w.stuck(t, pod, rig.VIP(1, w.family))
				after := c.d.Reasons()
				if n := after["translated"] - before["translated"]; n != 1 {
					t.Errorf("%s: %d of a new pod's 12 connections were chosen anew, want 1", w, n)
				}
				if n := after["affinity_kept"] - before["affinity_kept"]; n != 11 {
					t.Errorf("%s: %d of a new pod's 12 connections were kept, want 11", w, n)
				}
			}
		}
	})
}

// sticky is a client and a frontend of its own service with affinity.
type sticky struct {
	name string
	w    way
	from *lab.Pod
	dst  netip.AddrPort
	// server answered the last connection, which was made between began and ended.
	server       string
	began, ended time.Time
}

// stickies returns a client of each sort for each kind of frontend, in both families and
// over both protocols. Each has its own service, of which it is the only client.
func (c *cluster) stickies(seconds int32) []*sticky {
	c.t.Helper()
	outside := c.Client("outside")
	outside.RouteVia(lab.ServiceCIDR4, c.n1)
	outside.RouteVia(lab.ServiceCIDR6, c.n1)
	outside.RouteVia(lab.ExternalCIDR4, c.n1)
	outside.RouteVia(lab.ExternalCIDR6, c.n1)
	node := []netip.Addr{c.n1.Addr4(), c.n1.Addr6()}
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	var all []*sticky
	var objects []any
	for _, from := range []*lab.Pod{c.client, c.host, outside} {
		for _, kind := range []string{"cluster IP", "load-balancer IP", "external IP", "node port", "node port on loopback"} {
			if kind == "node port on loopback" && (from != c.host || !rig.KnowsOwnNetns()) {
				continue
			}
			n := 1 + len(objects)/2
			name := fmt.Sprintf("web-%d", n)
			objects = append(objects, rig.Service(name, n, rig.Everywhere(n), rig.WithAffinity(seconds)), rig.SlicesOf(name, rig.Up(c.web...)...))
			for _, w := range []way{ways[0], ways[1], ways[3], ways[4]} {
				dst := map[string]netip.AddrPort{"cluster IP": rig.VIP(n, w.family), "node port": rig.At(w.of(node), rig.NodePortOf(n)),
					"load-balancer IP": rig.At(w.of(rig.BalancerIPs(n)), rig.ServicePort), "external IP": rig.At(w.of(rig.ExternalIPs(n)), rig.ServicePort),
					"node port on loopback": rig.At(w.of(loopback), rig.NodePortOf(n))}[kind]
				all = append(all, &sticky{name: fmt.Sprintf("%s at %s by %s", from.Name(), kind, w), w: w, from: from, dst: dst})
			}
		}
	}
	c.apply(objects...)
	return all
}

// connect makes a new connection and reports whether affinity kept its endpoint.
func (s *sticky) connect(t *testing.T, d *rig.Daemon) (kept bool) {
	t.Helper()
	before := d.Reasons()["affinity_kept"]
	s.began = time.Now()
	a := s.w.ask(s.from, s.dst)
	s.ended = time.Now()
	if a.Err != nil {
		t.Fatalf("%s: %v", s.name, a.Err)
	}
	s.server = a.Server
	return d.Reasons()["affinity_kept"] > before
}

// TestAffinityTimeout checks the timeout for every kind of frontend and every sort of
// client: a connection within the timeout keeps the endpoint and restarts the timeout, a
// later one gets a new choice.
func TestAffinityTimeout(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	const timeout = 4 * time.Second
	all := c.stickies(int32(timeout / time.Second))
	for _, s := range all {
		if s.connect(t, c.d) {
			t.Errorf("%s: the first connection was kept", s.name)
		}
	}
	measured := 0
	for range 3 { // one and a half times the timeout
		time.Sleep(timeout / 2) // the test is about time itself
		for _, s := range all {
			first, last := s.server, s.began
			kept := s.connect(t, c.d)
			if s.ended.Sub(last) >= timeout { // this machine was too busy
				continue
			}
			measured++
			if !kept || s.server != first {
				t.Errorf("%s: %v after the last connection %s answers (kept: %v), before it was %s", s.name, s.ended.Sub(last), s.server, kept, first)
			}
		}
	}
	if measured < len(all) {
		t.Skipf("this machine is too slow: %d of %d connections came within %v of the last", measured, 3*len(all), timeout)
	}
	for _, s := range all {
		last := s.ended
		time.Sleep(time.Until(last.Add(timeout)))
		if s.connect(t, c.d) {
			t.Errorf("%s: %v after the last connection it was kept, to %s", s.name, s.began.Sub(last), s.server)
		}
	}
}

// TestAffinityOfGoneEndpoint: affinity ends at once with its endpoint, and does not return
// with it.
func TestAffinityOfGoneEndpoint(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1, rig.WithAffinity(3600)), rig.SlicesOf("web", rig.Up(c.web...)...))
	for _, w := range ways {
		server := w.stuck(t, c.client, rig.VIP(1, w.family))
		var gone rig.Endpoint
		var others []rig.Endpoint
		for _, p := range c.web {
			if p.Name() == server {
				gone = rig.Endpoint{Pod: p}
			} else {
				others = append(others, rig.Up(p)...)
			}
		}
		for _, state := range []string{"unready", "removed"} {
			if state == "unready" {
				c.apply(rig.SlicesOf("web", append(others, gone)...))
			} else {
				c.apply(rig.SlicesOf("web", others...))
			}
			if now := w.stuck(t, c.client, rig.VIP(1, w.family)); now == server {
				t.Errorf("%s: %s is %s and still answers", w, server, state)
			}
		}
		now := w.stuck(t, c.client, rig.VIP(1, w.family))
		c.apply(rig.SlicesOf("web", rig.Up(c.web...)...))
		if then := w.stuck(t, c.client, rig.VIP(1, w.family)); then != now {
			t.Errorf("%s: the client went from %s to %s as %s came back", w, now, then, server)
		}
	}
}
