// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// poked reports whether the store has woken the loop since its last call.
func poked(s *Store) bool {
	select {
	case <-s.poke:
		return true
	default:
		return false
	}
}

// TestStoreChanges checks that every change wakes the loop and is counted once, and that an equal
// object, or the deletion of one that does not exist, changes nothing.
func TestStoreChanges(t *testing.T) {
	clock := newTestClock()
	s := NewStore(clock.now)
	svc := func() *Service { return service("a", "10.96.0.1", "p:80/TCP") }
	sl := func() *EndpointSlice { return slice("s", "a", "p:80/TCP", "10.0.0.1@me zone=z1") }
	node := func() *Node { return &Node{Name: "me", Zone: "z1", Addrs: addrs("192.168.0.1")} }
	s.SetSynced()
	poked(s)
	for _, c := range []struct {
		what               string
		do                 func()
		changes            bool
		services, endpoint uint64
	}{
		{"a service", func() { s.SetService(svc()) }, true, 1, 0},
		{"an equal service", func() { s.SetService(svc()) }, false, 1, 0},
		{"another service", func() { s.SetService(svc().with(func(s *Service) { s.Ports[0].Port = 81 })) }, true, 2, 0},
		{"a slice", func() { s.SetSlice(sl()) }, true, 2, 1},
		{"an equal slice", func() { s.SetSlice(sl()) }, false, 2, 1},
		{"a slice with other hints", func() {
			n := sl()
			n.Endpoints[0].Hints.Zones = []string{"z2"}
			s.SetSlice(n)
		}, true, 2, 2},
		{"a slice that moves", func() { n := sl(); n.Service = svcName("b"); s.SetSlice(n) }, true, 2, 4}, // counted for both
		{"an unknown slice deleted", func() { s.DeleteSlice(SliceName{"default", "t"}) }, false, 2, 4},
		{"a slice deleted", func() { s.DeleteSlice(SliceName{"default", "s"}) }, true, 2, 5},
		{"an unknown service deleted", func() { s.DeleteService(svcName("b")) }, false, 2, 5},
		{"a service deleted", func() { s.DeleteService(svcName("a")) }, true, 3, 5},
		{"the node", func() { s.SetNode(node()) }, true, 3, 5},
		{"an equal node", func() { s.SetNode(node()) }, false, 3, 5},
		{"no node", func() { s.SetNode(nil) }, true, 3, 5},
		{"no node again", func() { s.SetNode(nil) }, false, 3, 5},
		{"no addresses", func() { s.SetNodeAddrs(nil) }, true, 3, 5},
		{"addresses", func() { s.SetNodeAddrs(addrs("10.0.0.1")) }, true, 3, 5},
		{"equal addresses", func() { s.SetNodeAddrs(addrs("10.0.0.1")) }, false, 3, 5},
		{"no service CIDRs", func() { s.SetServiceCIDRs(nil) }, true, 3, 5},
		{"service CIDRs", func() { s.SetServiceCIDRs(prefixes("10.97.0.0/16", "10.96.0.0/16")) }, true, 3, 5},
		{"the same in another order", func() { s.SetServiceCIDRs(prefixes("10.96.0.0/16", "10.97.0.0/16", "10.96.0.1/16")) }, false, 3, 5},
		{"synced again", func() { s.SetSynced() }, false, 3, 5},
	} {
		clock.advance(time.Second)
		before := s.lastQueued
		c.do()
		if got := poked(s); got != c.changes {
			t.Errorf("%s: the loop was woken: %t", c.what, got)
		}
		if got := s.lastQueued != before; got != c.changes {
			t.Errorf("%s: taken at %s, the clock is at %s", c.what, s.lastQueued, clock.t)
		}
		if s.serviceChanges != c.services || s.endpointChanges != c.endpoint {
			t.Errorf("%s: %d and %d changes, want %d and %d", c.what, s.serviceChanges, s.endpointChanges, c.services, c.endpoint)
		}
	}
	if n := len(s.services) + len(s.slices) + len(s.owner); n != 0 {
		t.Errorf("with all deleted %d things are kept", n)
	}
}

// TestStoreSynced checks that the loop is not woken before SetSynced, and once by it.
func TestStoreSynced(t *testing.T) {
	s := NewStore(newTestClock().now)
	s.SetService(service("a", "10.96.0.1", "p:80/TCP"))
	if poked(s) {
		t.Error("woken before the sync")
	}
	s.SetSynced()
	if !poked(s) || poked(s) {
		t.Error("not woken once by the sync")
	}
}

// TestSliceMoves checks that a slice that moves from one service to another leaves the first, in
// any number of moves, and that both services are looked at.
func TestSliceMoves(t *testing.T) {
	r := newGuardedRig(t)
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP"))
	r.store.SetService(service("b", "10.96.0.2", "p:80/TCP"))
	r.store.SetSlice(slice("s", "a", "p:80/TCP", "10.0.0.1"))
	r.store.SetSlice(slice("t", "a", "p:80/TCP", "10.0.0.2"))
	r.mustStep()
	for _, owner := range []string{"b", "a", "none", "b"} {
		r.store.SetSlice(slice("s", owner, "p:80/TCP", "10.0.0.1"))
		r.clock.advance(grace)
		r.mustStep()
		want := map[string]string{
			"a":    "a/p=10.0.0.1:80,10.0.0.2:80 b/p=",
			"b":    "a/p=10.0.0.2:80 b/p=10.0.0.1:80",
			"none": "a/p=10.0.0.2:80 b/p=",
		}[owner]
		got := fmt.Sprintf("a/p=%s b/p=%s", r.leads("10.96.0.1:80"), r.leads("10.96.0.2:80"))
		if got != want {
			t.Errorf("with the slice %s's: %s, want %s", owner, got, want)
		}
		r.sameAs(r.fresh(), "with the slice "+owner+"'s")
	}
}

// TestStoreConcurrent runs watchers, the loop and readers of the status at once, for the race
// detector. No change may be lost.
func TestStoreConcurrent(t *testing.T) {
	r := newGuardedRig(t)
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	var now sync.Mutex // testClock is not safe for concurrent use
	r.store.now = func() time.Time { now.Lock(); defer now.Unlock(); return r.clock.t }
	r.loop.o.Now, r.loop.r.now = r.store.now, r.store.now
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if s := r.loop.Status(); s.ServiceChangesPending > int(s.ServiceChanges) {
				t.Errorf("%d changes pending of %d", s.ServiceChangesPending, s.ServiceChanges)
				return
			}
		}
	})
	const each = 100
	for w := range 4 {
		writers.Go(func() {
			for i := range each {
				name := fmt.Sprintf("s%d", w)
				r.store.SetService(service(name, fmt.Sprintf("10.96.%d.1", w), fmt.Sprintf("p:%d/TCP", 80+i%2)))
				r.store.SetSlice(slice(name, name, "p:80/TCP", fmt.Sprintf("10.0.%d.%d", w, i%3)))
				if i%10 == 9 {
					r.store.SetNode(&Node{Name: "me", Zone: fmt.Sprint("z", i%3)})
					r.store.DeleteSlice(SliceName{"default", name})
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for open := true; open; {
		select {
		case <-done:
			open = false
		case <-r.store.poke:
		}
		now.Lock()
		r.clock.advance(grace)
		now.Unlock()
		r.mustStep()
	}
	close(stop)
	readers.Wait()
	r.mustStep()
	r.sameAs(r.fresh(), "in the end")
	if s := r.loop.Status(); s.ServiceChangesPending != 0 || s.EndpointChangesPending != 0 || !s.QueuedSince.IsZero() || s.ServiceChanges != 4*each {
		t.Errorf("%+v", s)
	}
}
