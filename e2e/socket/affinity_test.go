package socket_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"shunt/e2e/lab"
)

// stuck asks often and wants the same server each time, and gives it.
func (w way) stuck(t *testing.T, from *lab.Pod, dst netip.AddrPort) string {
	t.Helper()
	server := ""
	for range 12 { // of three endpoints the same would come by chance in 1 of 3^11
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

// TestAffinity: a client keeps its endpoint, whatever frontend of the service port
// it uses and from whatever source port. A client is a network namespace: each pod
// one, and the node's own processes together one.
func TestAffinity(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(service("web", 1, everywhere(1), withAffinity(3600)), slicesOf("web", up(c.web...)...))
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	node := []netip.Addr{c.n1.Addr4(), c.n1.Addr6()}
	for _, w := range ways {
		frontends := []netip.AddrPort{vip(1, w.family), at(w.of(balancerIPs(1)), servicePort),
			at(w.of(externalIPs(1)), servicePort), at(w.of(node), nodePortOf(1))}
		for _, from := range []*lab.Pod{c.client, c.host, c.web[0]} {
			first := w.stuck(t, from, frontends[0])
			for _, f := range frontends[1:] {
				if got := w.stuck(t, from, f); got != first {
					t.Errorf("%s: %s reaches %s at %v and %s at %v", w, from.Name(), first, frontends[0], got, f)
				}
			}
		}
		local := at(w.of(loopback), nodePortOf(1))
		if a, b := w.stuck(t, c.host, frontends[0]), w.stuck(t, c.host, local); a != b {
			t.Errorf("%s: the node reaches %s at %v and %s at %v", w, a, frontends[0], b, local)
		}
	}
	t.Run("two processes of the node are one client", func(t *testing.T) {
		other := c.n1.HostPod("other")
		for _, w := range ways {
			if a, b := w.stuck(t, c.host, vip(1, w.family)), w.stuck(t, other, vip(1, w.family)); a != b {
				t.Errorf("%s: one process reaches %s, another %s", w, a, b)
			}
		}
	})
	t.Run("pods are clients of their own", func(t *testing.T) {
		// Were they one client, the second pod's first connection would be counted
		// as kept by affinity.
		for i := range 3 {
			pod := c.n1.Pod(fmt.Sprintf("new-%d", i))
			for _, w := range []way{ways[0], ways[1], ways[3], ways[7]} {
				before := c.d.reasons()
				w.stuck(t, pod, vip(1, w.family))
				after := c.d.reasons()
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

// TestAffinityTimeout measures the timeout: what is within it of the last
// connection is kept, what comes after is chosen anew.
func TestAffinityTimeout(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	const timeout = 2 * time.Second
	c.apply(service("web", 1, withAffinity(int32(timeout/time.Second))), slicesOf("web", up(c.web...)...))
	connect := func(w way) (server string, kept bool) {
		before := c.d.reasons()["affinity_kept"]
		a := w.ask(c.client, vip(1, w.family))
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		return a.Server, c.d.reasons()["affinity_kept"] > before
	}
	w := ways[0]
	first, kept := connect(w)
	if kept {
		t.Fatal("the first connection was kept by affinity")
	}
	// Twice the timeout in steps of half of it: every connection puts it off.
	last := time.Now()
	for range 4 {
		time.Sleep(timeout / 2) // it is time itself that is tested
		began := time.Now()
		server, kept := connect(w)
		if began.Sub(last) >= timeout {
			t.Skipf("this machine took %v between two connections", began.Sub(last))
		}
		if !kept || server != first {
			t.Fatalf("%v after the last connection: %s answers (kept: %v), before it was %s", began.Sub(last), server, kept, first)
		}
		last = began
	}
	last = time.Now()
	time.Sleep(timeout)
	if server, kept := connect(w); kept {
		t.Errorf("%v after the last connection it was kept, to %s", time.Since(last), server)
	}
	if server, kept := connect(ways[4]); kept {
		t.Errorf("the first connection by another family and protocol was kept, to %s", server)
	}
}

// TestAffinityOfGoneEndpoint: affinity ends with its endpoint, at once, and does
// not come back with it.
func TestAffinityOfGoneEndpoint(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(service("web", 1, withAffinity(3600)), slicesOf("web", up(c.web...)...))
	for _, w := range ways {
		server := w.stuck(t, c.client, vip(1, w.family))
		var gone endpoint
		var others []endpoint
		for _, p := range c.web {
			if p.Name() == server {
				gone = endpoint{pod: p}
			} else {
				others = append(others, up(p)...)
			}
		}
		for _, state := range []string{"unready", "removed"} {
			if state == "unready" {
				c.apply(slicesOf("web", append(others, gone)...))
			} else {
				c.apply(slicesOf("web", others...))
			}
			if now := w.stuck(t, c.client, vip(1, w.family)); now == server {
				t.Errorf("%s: %s is %s and still answers", w, server, state)
			}
		}
		now := w.stuck(t, c.client, vip(1, w.family))
		c.apply(slicesOf("web", up(c.web...)...))
		if then := w.stuck(t, c.client, vip(1, w.family)); then != now {
			t.Errorf("%s: the client went from %s to %s as %s came back", w, now, then, server)
		}
	}
}
