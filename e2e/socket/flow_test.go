// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// udpWays are the kinds of unconnected UDP sockets.
var udpWays = ways[6:]

// TestFlowStays: an unconnected socket keeps its endpoint of a service while other
// endpoints change, and gets another one at once when its own is gone.
func TestFlowStays(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web...)...))
	talkers := map[*talker]string{}
	for _, w := range udpWays {
		for range 3 {
			k := w.open(t, c.client)
			talkers[k] = k.askTo(rig.VIP(1, w.family))
		}
	}
	want := func(present []*lab.Pod) {
		t.Helper()
		for k, server := range talkers {
			dst := rig.VIP(1, k.w.family)
			for range rig.InShort(5, 20) {
				got := k.askTo(dst)
				if contains(present, server) && got != server {
					t.Fatalf("%s: %s answers, before it was %s, which still serves", k.w, got, server)
				}
				if !contains(present, got) {
					t.Fatalf("%s: %s answers, which is gone", k.w, got)
				}
				talkers[k] = got
				server = got
			}
		}
	}
	want(c.web)
	for round := range 6 {
		present := slices.Clone(c.web)
		if round%2 == 0 {
			present = slices.Delete(present, round/2, round/2+1)
		}
		c.apply(rig.SlicesOf("web", rig.Up(present...)...))
		want(present)
	}
}

// TestFlowOfReusedRecord: the id of a removed backend may be reused for another endpoint of
// the same service. A flow with that id must not go to the old address.
func TestFlowOfReusedRecord(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	record := func(pod *lab.Pod) (uint32, bool) {
		for id, be := range c.d.Dump().Backends {
			if be.AddrPort() == rig.At(pod.Addr4(), rig.ServerPort) && be.Protocol == 17 {
				return id, true
			}
		}
		return 0, false
	}
	old, _ := record(c.web[0])
	w := udpWays[0]
	unconnected, connected := w.open(t, c.client), w.openTo(t, c.client, rig.VIP(1, 4))
	unconnected.askTo(rig.VIP(1, 4))
	connected.askTo(rig.VIP(1, 4))
	next := 0
	rig.Eventually(t, "the record of an endpoint that is gone is used again", func() bool {
		// The allocator holds back a freed id for 250 ms and takes the last one that is
		// free first: at a similar pace, some ids are never reused.
		time.Sleep(400 * time.Millisecond)
		next++
		c.apply(rig.SlicesOf("web", rig.Up(c.web[1+next%2])...))
		id, there := record(c.web[1+next%2])
		return there && id == old
	})
	server := c.web[1+next%2].Name()
	if got := unconnected.askTo(rig.VIP(1, 4)); got != server {
		t.Errorf("the unconnected socket is answered by %s, want %s", got, server)
	}
	connected.wantDestroyed()
	if err := connected.SendTo(rig.VIP(1, 4), line("x")); err != nil {
		t.Fatal(err)
	}
	if got := connected.hear(); got.server != server {
		t.Errorf("the socket that was connected is answered by %s, want %s", got.server, server)
	}
}

// serveMore makes the pods serve UDP on n ports from base on.
func serveMore(base uint16, n int, pods ...*lab.Pod) {
	for i := range n {
		for _, p := range pods {
			p.Serve("udp", base+uint16(i))
		}
	}
}

// TestServicesAtOnce: one socket writes to several services before it reads, and every
// answer comes from the address that its request was sent to. This is promised for up to 16
// services (SOCK_FLOWS) if each has an endpoint that no other flow of the socket uses: two
// flows of one socket avoid the same endpoint while the service has another.
func TestServicesAtOnce(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	const most = 16
	serveMore(9001, most, c.web[0], c.web[1])
	for i := 1; i <= most; i++ {
		c.m.Put(rig.Service(fmt.Sprintf("own-%d", i), i), rig.SlicesOf(fmt.Sprintf("own-%d", i),
			rig.UpAt(uint16(9000+i), c.web[0], c.web[1])...))
	}
	for _, n := range []int{101, 102, 103} { // the same three endpoints
		c.m.Put(rig.Service(fmt.Sprintf("shared-%d", n), n), rig.SlicesOf(fmt.Sprintf("shared-%d", n), rig.Up(c.web...)...))
	}
	c.apply()
	for _, test := range []struct {
		name     string
		services []int
	}{
		{"two", []int{1, 2}},
		{"two with the same endpoints", []int{101, 102}},
		{"sixteen", numbers(1, most)},
		{"some that share", []int{1, 101, 2, 102, 3}},
	} {
		for _, w := range udpWays {
			t.Run(test.name+"/"+w.String(), func(t *testing.T) {
				for range rig.InShort(2, 5) {
					sendThenReceive(t, w.open(t, c.client), test.services, 3)
				}
			})
		}
	}
	t.Run("as many as there are endpoints", func(t *testing.T) {
		// Three flows on three endpoints: for the last flow one endpoint is left, which the
		// search finds because it wraps around.
		for range rig.InShort(5, 20) {
			sendThenReceive(t, udpWays[0].open(t, c.client), []int{101, 102, 103}, 2)
		}
	})
}

func numbers(from, to int) []int {
	var all []int
	for i := from; i <= to; i++ {
		all = append(all, i)
	}
	return all
}

// sendThenReceive sends to all services, then receives all answers, in several rounds. Each
// service's server must be the same in every round.
func sendThenReceive(t *testing.T, k *talker, services []int, rounds int) {
	t.Helper()
	servers := map[netip.AddrPort]string{}
	for range rounds {
		asked := map[string]netip.AddrPort{}
		for _, n := range services {
			dst, token := rig.VIP(n, k.w.family), k.token()
			asked[token] = dst
			if err := k.SendTo(dst, line(token)); err != nil {
				t.Fatalf("send to %v: %v", dst, err)
			}
		}
		for range services {
			h := k.hear()
			dst, known := asked[h.token]
			if !known {
				t.Fatalf("heard %+v, which was not asked or was answered twice", h)
			}
			delete(asked, h.token)
			if h.from != k.w.asked(dst) {
				t.Fatalf("asked %v, %s answered as %v", dst, h.server, h.from)
			}
			if s := servers[dst]; s != "" && s != h.server {
				t.Fatalf("%v was answered by %s, then by %s", dst, s, h.server)
			}
			servers[dst] = h.server
		}
	}
}

// TestManyServices: one socket uses more services than it can have flows. Every request is
// answered by an endpoint of its service. The answer shows the service's address if fewer
// than 16 other services were asked between request and answer. An evicted flow gets the
// same endpoint again, if the service has not changed and no other flow of the socket uses
// it.
func TestManyServices(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	many := rig.InShort(20, 40) // a socket can have 16 flows
	serveMore(9001, many, c.web[0], c.web[1])
	for i := 1; i <= many; i++ {
		c.m.Put(rig.Service(fmt.Sprintf("own-%d", i), i), rig.SlicesOf(fmt.Sprintf("own-%d", i),
			rig.UpAt(uint16(9000+i), c.web[0], c.web[1])...))
	}
	c.apply()
	for _, w := range udpWays {
		k := w.open(t, c.client)
		first := map[int]string{}
		for round := range 4 {
			for i := 1; i <= many; i++ {
				server := k.askTo(rig.VIP(i, w.family))
				if round > 0 && first[i] != server {
					t.Errorf("%s: service %d was answered by %s, then by %s", w, i, first[i], server)
				}
				first[i] = server
			}
		}
		// All at once: every request is answered, from any address.
		waiting := map[string]bool{}
		for i := 1; i <= many; i++ {
			token := k.token()
			waiting[token] = true
			if err := k.SendTo(rig.VIP(i, w.family), line(token)); err != nil {
				t.Fatal(err)
			}
		}
		for len(waiting) > 0 {
			h := k.hear()
			if !waiting[h.token] {
				t.Fatalf("%s: heard %+v, which was not asked", w, h)
			}
			delete(waiting, h.token)
		}
	}
}

// TestTwoThreads: two threads send on one socket at the same time, each to its own service.
func TestTwoThreads(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("a", 1), rig.SlicesOf("a", rig.Up(c.web...)...), rig.Service("b", 2), rig.SlicesOf("b", rig.Up(c.web...)...))
	for _, w := range udpWays {
		k := w.open(t, c.client)
		each := rig.InShort(50, 200)
		var wg sync.WaitGroup
		// The requests in flight must fit into the socket's buffer.
		window := make(chan struct{}, 50)
		for n := 1; n <= 2; n++ {
			wg.Go(func() {
				for i := range each {
					window <- struct{}{}
					if err := k.SendTo(rig.VIP(n, w.family), line(fmt.Sprintf("%d/%d", n, i))); err != nil {
						t.Errorf("%s: send to %v: %v", w, rig.VIP(n, w.family), err)
						return
					}
				}
			})
		}
		servers := map[string]bool{}
		for range 2 * each {
			h := k.hear()
			<-window
			service, _, _ := strings.Cut(h.token, "/")
			servers[service+" "+h.server] = true
			if want := w.asked(rig.VIP(int(service[0]-'0'), w.family)); h.from != want {
				t.Fatalf("%s: asked %v, %s answered as %v", w, want, h.server, h.from)
			}
		}
		wg.Wait()
		if len(servers) != 2 {
			t.Errorf("%s: the flows moved: %v", w, servers)
		}
	}
}

// TestSendToOnConnected: a connected socket may send to other addresses. A datagram to its
// own service goes to its endpoint. One to another service arrives, and the socket's own
// flow continues.
func TestSendToOnConnected(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	other := c.web[1].Serve("udp", 9001)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web...)...),
		rig.Service("other", 2), rig.SlicesOf("other", rig.UpAt(9001, c.web[1])...))
	for _, w := range ways[3:6] {
		dst := rig.VIP(1, w.family)
		k := w.openTo(t, c.client, dst)
		server := k.ask(dst)
		for range 20 {
			if got := k.askTo(dst); got != server {
				t.Fatalf("%s: connected to %s, sendto goes to %s", w, server, got)
			}
		}
		before, _ := other.Count()
		if err := k.SendTo(rig.VIP(2, w.family), line("over there")); err != nil {
			t.Fatal(err)
		}
		rig.Eventually(t, "a datagram to another service arrives", func() bool {
			n, err := other.Count()
			return err == nil && n == before+1
		})
		k.wantKept(dst, server)
	}
}

// TestReconnect: a UDP socket may connect repeatedly: to another service, to a pod, to an
// address without a server. getpeername() always returns the last address.
func TestReconnect(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("a", 1), rig.SlicesOf("a", rig.Up(c.web[0])...), rig.Service("b", 2), rig.SlicesOf("b", rig.Up(c.web[0], c.web[1])...))
	for _, w := range ways[3:6] {
		k := w.open(t, c.client)
		pod := rig.At(w.of(c.web[0].Addrs()), rig.ServerPort)
		for _, dst := range []netip.AddrPort{rig.VIP(1, w.family), rig.VIP(2, w.family), rig.VIP(1, w.family), pod, rig.VIP(1, w.family), pod} {
			if err := k.Connect(dst); err != nil {
				t.Fatalf("%s: connect to %v: %v", w, dst, err)
			}
			k.wantPeer(dst)
			k.ask(dst)
			k.askTo(dst)
		}
	}
	t.Run("disconnect", func(t *testing.T) { disconnect(t, c) })
}

// TestFixedPort: a client that always uses the same source port reaches a live endpoint
// after its own is gone.
func TestFixedPort(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	for i, w := range append(slices.Clone(ways[3:6]), udpWays...) {
		here, next := c.web[i%2], c.web[1-i%2]
		c.apply(rig.SlicesOf("web", rig.Up(here)...))
		bind := func() *talker {
			k := w.open(t, c.client)
			if err := k.Bind(netip.AddrPortFrom(w.any(), 5353)); err != nil {
				t.Fatalf("%s: %v", w, err)
			}
			if !w.sendto {
				if err := k.Connect(rig.VIP(1, w.family)); err != nil {
					t.Fatalf("%s: %v", w, err)
				}
			}
			return k
		}
		k := bind()
		if got := k.askTo(rig.VIP(1, w.family)); got != here.Name() {
			t.Fatalf("%s: %s answers, want %s", w, got, here.Name())
		}
		c.apply(rig.SlicesOf("web", rig.Up(next)...))
		if !w.sendto {
			k.wantDestroyed()
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		k = bind()
		if got := k.askTo(rig.VIP(1, w.family)); got != next.Name() {
			t.Errorf("%s: %s answers, want %s", w, got, next.Name())
		}
		if k.own != 5353 {
			t.Errorf("%s: the server saw port %d, want 5353", w, k.own)
		}
		_ = k.Close()
	}
}

// any returns the way's unspecified address.
func (w way) any() netip.Addr {
	if strings.HasSuffix(w.network, "6") {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
