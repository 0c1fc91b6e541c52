// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// eachTables runs a test on the fake and on real maps.
func eachTables(t *testing.T, sizes maps.Sizes, test func(t *testing.T, tables maps.Tables)) {
	t.Run("fake", func(t *testing.T) { test(t, maps.NewFake(sizes)) })
	t.Run("kernel", func(t *testing.T) { test(t, mapstest.New(t, sizes)) })
}

// town fills a store with objects of every kind, conflicts included.
func town(st *Store) {
	st.SetNode(&Node{Name: "me", Zone: "z1"})
	st.SetNodeAddrs(nodeAddrs)
	st.SetService(service("web", "10.96.0.1 fd96::1", "http:80/TCP:30080", "dns:53/UDP:30053").with(func(s *Service) {
		s.ExternalIPs, s.LoadBalancerIPs = addrs("1.1.1.1"), addrs("1.1.1.2", "2001:db8::2")
		s.ExternalLocal, s.AffinityTimeout = true, time.Minute
		s.SourceRanges = prefixes("203.0.113.0/24", "192.168.0.0/24", "2001:db8:1::/48")
	}))
	st.SetSlice(slice("web-4", "web", "http:8080/TCP dns:53/UDP", "10.0.0.1@me", "10.0.0.2", "10.0.0.3 serving terminating"))
	st.SetSlice(slice("web-6", "web", "http:8080/TCP dns:53/UDP", "fd00::1@me", "fd00::2"))
	st.SetService(service("young", "10.96.0.2", "http:80/TCP").with(func(s *Service) {
		s.ExternalIPs, s.ExternalLocal = addrs("1.1.1.1"), true // web has claimed it
	}))
	st.SetSlice(slice("young-4", "young", "http:8080/TCP", "10.0.1.1@me", "10.0.1.2"))
	st.SetService(service("empty", "10.96.0.3", "http:80/TCP"))
	st.SetService(service("far", "10.96.0.4", "http:80/TCP").with(func(s *Service) { s.InternalLocal = true }))
	st.SetSlice(slice("far-4", "far", "http:8080/TCP", "10.0.3.1@you"))
	st.SetServiceCIDRs(prefixes("10.96.0.0/16", "fd96::/112"))
}

var townSizes = maps.Sizes{Services: 64, Slots: 256, Backends: 64, Affinity: 16, Sources: 64, Flows: 16}

// TestAdopt checks that a new daemon writes nothing for unchanged objects, and that a change made
// while no daemon ran costs the same writes as at any other time.
func TestAdopt(t *testing.T) {
	for _, c := range []struct {
		what      string
		meanwhile func(*Store)
		want      maps.Writes
	}{
		{"nothing", func(*Store) {}, maps.Writes{}},
		{"an endpoint of another node replaced, of a service whose policy is Local", func(s *Store) {
			s.SetSlice(slice("far-4", "far", "http:8080/TCP", "10.0.3.2@you"))
		}, maps.Writes{Backends: 2}},
		{"an endpoint replaced", func(s *Store) {
			s.SetSlice(slice("young-4", "young", "http:8080/TCP", "10.0.1.1@me", "10.0.1.3"))
		}, maps.Writes{Frontends: 1, Slots: 2, Backends: 2}},
		{"a service deleted", func(s *Store) { s.DeleteService(svcName("far")) }, maps.Writes{Frontends: 2, Backends: 1, Names: 1}},
		{"a service of two families deleted, of which one frontend is inherited", func(s *Store) { s.DeleteService(svcName("web")) },
			maps.Writes{Frontends: 2*7 + 2, Slots: 1, Backends: 10, Names: 4, Sources: 2*3 + 2}},
		{"a service more", func(s *Store) { s.SetService(service("new", "10.96.0.9", "http:80/TCP")) }, maps.Writes{Frontends: 2, Names: 1}},
		{"the older of two that claim an address", func(s *Store) {
			s.SetService(service("web", "10.96.0.1 fd96::1", "http:80/TCP:30080", "dns:53/UDP:30053").with(func(s *Service) {
				s.ExternalIPs, s.LoadBalancerIPs = addrs("1.1.1.1"), addrs("1.1.1.2", "2001:db8::2")
				s.ExternalLocal, s.AffinityTimeout, s.Created = true, time.Minute, time.Unix(9, 0)
				s.SourceRanges = prefixes("203.0.113.0/24", "192.168.0.0/24", "2001:db8:1::/48")
			}))
		}, maps.Writes{Frontends: 1, Slots: 1}},
		{"a service CIDR less", func(s *Store) { s.SetServiceCIDRs(prefixes("10.96.0.0/16")) }, maps.Writes{ServiceCidrs: 1}},
		{"a node's address", func(s *Store) { s.SetNodeAddrs(nodeAddrs[:3]) }, maps.Writes{NodeAddrs: 1}},
	} {
		t.Run(c.what, func(t *testing.T) {
			eachTables(t, townSizes, func(t *testing.T, tables maps.Tables) {
				r := newRig(t, tables, newTestClock())
				town(r.store)
				r.mustStep()
				r.sameAs(r.fresh(), "at first")
				before := r.used()
				c.meanwhile(r.store)
				r.clock.advance(time.Minute)
				if a := r.start(); a.Services != before.names || a.Backends != int(before.records) || a.Frontends == 0 {
					t.Errorf("adopted %+v of %+v", a, before)
				}
				if got := r.mustStep().Writes; got != c.want {
					t.Errorf("writes %+v, want %+v", got, c.want)
				}
				r.sameAs(r.fresh(), "after the restart")
				if got := r.mustStep().Writes; got != (maps.Writes{}) {
					t.Errorf("and then %+v", got)
				}
			})
		})
	}
}

// fe returns the key of a frontend such as "10.96.0.1:80".
func fe(s string, protocol Protocol) maps.FrontendKey {
	ap := netip.MustParseAddrPort(s)
	return maps.NewFrontendKey(ap.Addr(), ap.Port(), uint8(protocol))
}

// leftoverTests are contents that no daemon leaves in the maps, except when it was killed at a bad
// moment. They are removed, and nothing else changes meanwhile. They need real maps: the fake
// refuses them.
var leftoverTests = []struct {
	what  string
	spoil func(k *maps.Kernel, d *maps.Dump) error
}{
	{"a frontend of an id without a name", func(k *maps.Kernel, d *maps.Dump) error {
		return k.SetFrontend(fe("9.9.9.9:9", TCP), maps.Frontend{Id: 77, Kind: uint8(maps.ExternalIP)})
	}},
	{"one that leads to another service's slots", func(k *maps.Kernel, d *maps.Dump) error {
		v := d.Frontends[fe("10.96.0.1:80", TCP)]
		v.Id = 77
		return k.SetFrontend(fe("9.9.9.9:9", TCP), v)
	}},
	{"one that leads to slots of nobody", func(k *maps.Kernel, d *maps.Dump) error {
		v := maps.Frontend{Id: 77, Kind: uint8(maps.ExternalIP), Inside: maps.SlotRange{Base: 0, Count: 256}}
		return k.SetFrontend(fe("9.9.9.9:9", TCP), v)
	}},
	{"one that leads there from outside", func(k *maps.Kernel, d *maps.Dump) error {
		v := maps.Frontend{Id: 77, Kind: uint8(maps.ExternalIP), Outside: maps.SlotRange{Base: 0, Count: 256}}
		return k.SetFrontend(fe("9.9.9.9:9", TCP), v)
	}},
	{"a range of clients of an id without a name", func(k *maps.Kernel, d *maps.Dump) error {
		return k.SetSourceRange(maps.NewSourceRangeKey(2, prefixes("0.0.0.0/0")[0]))
	}},
	{"one of the next ids to be given out", func(k *maps.Kernel, d *maps.Dump) error {
		var errs []error
		for id := range uint32(30) {
			if _, named := d.Names[id]; !named && id > 0 {
				errs = append(errs, k.SetSourceRange(maps.NewSourceRangeKey(id, prefixes("0.0.0.0/0")[0])))
			}
		}
		return errors.Join(errs...)
	}},
	{"one that its service has not", func(k *maps.Kernel, d *maps.Dump) error {
		return k.SetSourceRange(maps.NewSourceRangeKey(d.Frontends[fe("1.1.1.2:80", TCP)].Id, prefixes("0.0.0.0/0")[0]))
	}},
	{"no range where there was one", func(k *maps.Kernel, d *maps.Dump) error {
		return k.DeleteSourceRange(maps.NewSourceRangeKey(d.Frontends[fe("1.1.1.2:80", TCP)].Id, prefixes("203.0.113.0/24")[0]))
	}},
	{"a name without a service", func(k *maps.Kernel, d *maps.Dump) error {
		return k.SetName(50, maps.Name{Namespace: "x", Name: "y", Protocol: 6, Family: 4})
	}},
	{"names of ids that can't be", func(k *maps.Kernel, d *maps.Dump) error {
		n := maps.Name{Namespace: "x", Name: "y", Protocol: 6, Family: 4}
		return errors.Join(k.SetName(0, n), k.SetName(1<<32-1, n))
	}},
	{"a name of no protocol", func(k *maps.Kernel, d *maps.Dump) error {
		return k.SetName(50, maps.Name{Namespace: "default", Name: "web", Family: 4})
	}},
	{"a name twice", func(k *maps.Kernel, d *maps.Dump) error {
		v := d.Frontends[fe("10.96.0.3:80", TCP)]
		return k.SetName(50, d.Names[v.Id])
	}},
	{"a name twice, with a frontend of each", func(k *maps.Kernel, d *maps.Dump) error {
		v := d.Frontends[fe("10.96.0.3:80", TCP)]
		n := d.Names[v.Id]
		v.Id = 50
		return errors.Join(k.SetName(50, n), k.SetFrontend(fe("9.9.9.9:9", TCP), v))
	}},
	{"no name where there was one", func(k *maps.Kernel, d *maps.Dump) error {
		return k.DeleteName(d.Frontends[fe("10.96.0.4:80", TCP)].Id)
	}},
	{"a record of an id without a name", func(k *maps.Kernel, d *maps.Dump) error {
		return k.SetBackend(60, maps.NewBackend(netip.MustParseAddrPort("10.9.9.9:9"), 6, maps.ClusterSet, 78))
	}},
	{"a record twice", func(k *maps.Kernel, d *maps.Dump) error {
		v := d.Frontends[fe("10.96.0.4:80", TCP)]
		return k.SetBackend(60, maps.NewBackend(netip.MustParseAddrPort("10.0.3.1:8080"), 6, maps.ClusterSet, v.Id))
	}},
	{"a record of an endpoint that is gone", func(k *maps.Kernel, d *maps.Dump) error {
		v := d.Frontends[fe("10.96.0.4:80", TCP)]
		return k.SetBackend(60, maps.NewBackend(netip.MustParseAddrPort("10.0.3.99:8080"), 6, maps.ClusterSet, v.Id))
	}},
	{"a range that leaves the array", func(k *maps.Kernel, d *maps.Dump) error {
		return spoilRange(k, d, maps.SlotRange{Base: 255, Count: 2})
	}},
	{"a range that wraps", func(k *maps.Kernel, d *maps.Dump) error {
		return spoilRange(k, d, maps.SlotRange{Base: 1<<32 - 1, Count: 1<<32 - 1})
	}},
	{"a range that starts where none of ours can", func(k *maps.Kernel, d *maps.Dump) error {
		return spoilRange(k, d, maps.SlotRange{Base: 201, Count: 4})
	}},
	{"a range that overlaps another's", func(k *maps.Kernel, d *maps.Dump) error {
		other := d.Frontends[fe("10.96.0.1:80", TCP)].Inside
		return spoilRange(k, d, maps.SlotRange{Base: other.Base &^ 15, Count: 16})
	}},
	{"a range that is another's", func(k *maps.Kernel, d *maps.Dump) error {
		return spoilRange(k, d, d.Frontends[fe("10.96.0.1:80", TCP)].Inside)
	}},
	{"a range of records that are free", func(k *maps.Kernel, d *maps.Dump) error {
		r := maps.SlotRange{Base: 200, Count: 3}
		return errors.Join(k.WriteSlots(200, []uint32{0, 63, 1 << 31}), spoilRange(k, d, r))
	}},
	{"a frontend that its service has not", func(k *maps.Kernel, d *maps.Dump) error {
		return k.SetFrontend(fe("9.9.9.9:9", TCP), d.Frontends[fe("10.96.0.1:80", TCP)])
	}},
	{"a cluster IP that no service has", func(k *maps.Kernel, d *maps.Dump) error {
		return k.SetFrontend(maps.NewFrontendKey(netip.MustParseAddr("9.9.9.9"), 0, 0), maps.Frontend{Kind: uint8(maps.UndefinedPort)})
	}},
	{"a node address that the node has not", func(k *maps.Kernel, d *maps.Dump) error {
		return k.SetNodeAddr(netip.MustParseAddr("9.9.9.9"), 0)
	}},
	{"all of them at once", func(k *maps.Kernel, d *maps.Dump) error {
		return errors.Join(k.SetFrontend(fe("9.9.9.9:9", UDP), maps.Frontend{Id: 79, Kind: uint8(maps.ExternalIP), Inside: maps.SlotRange{Base: 100, Count: 90}}),
			k.SetName(50, maps.Name{Namespace: "x", Name: "y", Protocol: 6, Family: 4}),
			k.SetBackend(60, maps.NewBackend(netip.MustParseAddrPort("10.9.9.9:9"), 6, maps.ClusterSet, 78)),
			spoilRange(k, d, maps.SlotRange{Base: 201, Count: 4}),
			k.DeleteName(d.Frontends[fe("10.96.0.3:80", TCP)].Id))
	}},
}

// spoilRange changes the slot range of service far's entry.
func spoilRange(k *maps.Kernel, d *maps.Dump, r maps.SlotRange) error {
	key := fe("10.96.0.4:80", TCP)
	v := d.Frontends[key]
	v.Outside = r
	return k.SetFrontend(key, v)
}

func TestLeftovers(t *testing.T) {
	for _, c := range leftoverTests {
		t.Run(c.what, func(t *testing.T) {
			k := mapstest.New(t, townSizes)
			clock := newTestClock()
			r := newRig(t, k, clock)
			town(r.store)
			r.mustStep()
			if err := c.spoil(k, r.dump()); err != nil {
				t.Fatal(err)
			}
			spoiled := r.dump()
			g := newGuard(t, k, clock)
			g.serving = map[maps.FrontendKey]sides{
				fe("10.96.0.1:80", TCP): {true, true}, fe("10.96.0.2:80", TCP): {true, true}, fe("[fd96::1]:53", UDP): {true, true}}
			g.wrong = wrong(spoiled)
			f := &faults{lives: -1}
			r.tables = &maps.Faulty{Tables: g, Fail: f.fail}
			r.store.SetService(service("far", "10.96.0.4", "http:80/TCP")) // without policy Local: slots are written
			r.store.SetService(service("new", "10.96.0.5", "http:80/TCP"))
			r.store.SetSlice(slice("new-4", "new", "http:8080/TCP", "10.0.5.1", "10.0.5.2", "10.0.5.3"))
			r.start()
			clock.advance(grace)
			r.settle()
			r.sameAs(r.fresh(), "after the restart")
			if writes := r.mustStep().Writes; writes.Total() != 0 {
				t.Errorf("and then %+v", writes)
			}
			keepsService(t, r.dump(), spoiled, "10.96.0.1:80")
			clock.advance(grace)
			checkEmptied(t, r, g)
		})
	}
}

// keepsService fails unless a service's entry is unchanged, including its ids: a lookup under way
// sees no difference.
func keepsService(t *testing.T, now, before *maps.Dump, frontend string) {
	t.Helper()
	key := fe(frontend, TCP)
	if a, b := now.Frontends[key], before.Frontends[key]; a != b {
		t.Errorf("frontend %s is %+v, was %+v", key, a, b)
	}
}

// wrong returns the entries without a name, with an invalid slot range, or with backends of another
// service.
func wrong(d *maps.Dump) map[maps.FrontendKey]bool {
	keys := map[maps.FrontendKey]bool{}
	for k, v := range d.Frontends {
		_, named := d.Names[v.Id]
		keys[k] = v.Id != 0 && !named
		for _, r := range []maps.SlotRange{v.Inside, v.Outside} {
			ids, err := d.Range(r)
			keys[k] = keys[k] || err != nil
			for _, id := range ids {
				keys[k] = keys[k] || d.Backends[id].ServiceId != v.Id
			}
		}
	}
	return keys
}

// TestLeftoversWithFaults is TestLeftovers with writes that fail: the leftovers are removed in the
// end.
func TestLeftoversWithFaults(t *testing.T) {
	for _, c := range leftoverTests {
		t.Run(c.what, func(t *testing.T) {
			for lives := range 8 {
				k := mapstest.New(t, townSizes)
				clock := newTestClock()
				r := newRig(t, k, clock)
				town(r.store)
				r.mustStep()
				if err := c.spoil(k, r.dump()); err != nil {
					t.Fatal(err)
				}
				g := newGuard(t, k, clock)
				g.wrong = wrong(r.dump())
				f := &faults{lives: lives}
				r.tables = &maps.Faulty{Tables: g, Fail: f.fail}
				r.start()
				r.step()
				f.lives = -1
				clock.advance(grace)
				r.settle()
				r.sameAs(r.fresh(), "settled")
			}
		})
	}
}

// TestPruneOrder checks that the backends of an entry are not freed while the entry cannot be
// deleted.
func TestPruneOrder(t *testing.T) {
	k := mapstest.New(t, townSizes)
	r := newRig(t, k, newTestClock())
	town(r.store)
	r.mustStep()
	key := fe("9.9.9.9:9", TCP)
	err := errors.Join(
		k.SetBackend(60, maps.NewBackend(netip.MustParseAddrPort("10.9.9.9:9"), 6, maps.ClusterSet, 77)),
		k.WriteSlots(200, []uint32{60}),
		k.SetFrontend(key, maps.Frontend{Id: 77, Kind: uint8(maps.ExternalIP), Inside: maps.SlotRange{Base: 200, Count: 1}}))
	if err != nil {
		t.Fatal(err)
	}
	stuck := true
	r.tables = &maps.Faulty{Tables: k, Fail: func(method string) error {
		if stuck && method == "DeleteFrontend" {
			return errFault
		}
		return nil
	}}
	r.start()
	for range 3 {
		r.clock.advance(grace)
		if rep := r.step(); !errors.Is(rep.Err, errFault) {
			t.Fatalf("%+v", rep)
		}
		d := r.dump()
		if _, there := d.Frontends[key]; !there || d.Backends[60].ServiceId != 77 {
			t.Fatalf("the entry is there: %t, and leads to %+v", there, d.Backends[60])
		}
	}
	stuck = false
	r.settle()
	r.sameAs(r.fresh(), "when it can be removed")
}
