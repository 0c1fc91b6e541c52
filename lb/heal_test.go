// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// TestFullMapsHeal checks that, where a map is full, removals make room for additions, also inside
// one service and over a restart.
func TestFullMapsHeal(t *testing.T) {
	roomFor := maps.Sizes{Services: 64, Slots: 64, Backends: 64, Affinity: 16, Sources: 16, Flows: 16}
	eight := func(r *rig, ports string, endpoints ...string) {
		for i := range 8 {
			name := string(rune('a' + i))
			r.store.SetService(service(name, fmt.Sprintf("10.96.0.%d", i), ports))
			var mine []string
			for e := range endpoints {
				mine = append(mine, fmt.Sprintf("10.%d.0.%d", i, e))
			}
			r.store.SetSlice(slice(name, name, "p:8080/TCP", mine...))
		}
	}
	for _, c := range []struct {
		what   string
		sizes  func(*maps.Sizes)
		begin  func(*rig)
		change func(*rig)
		leads  string
		to     string
	}{
		{"both endpoints replaced, backends full", func(s *maps.Sizes) { s.Backends = 17 },
			func(r *rig) { eight(r, "p:80/TCP", "", "") },
			func(r *rig) { r.store.SetSlice(slice("c", "c", "p:8080/TCP", "10.2.9.1", "10.2.9.2")) },
			"10.96.0.2:80", "10.2.9.1:8080,10.2.9.2:8080"},
		{"one endpoint replaced, slots full", func(s *maps.Sizes) { s.Slots = 16 },
			func(r *rig) { eight(r, "p:80/TCP", "", "") },
			func(r *rig) { r.store.SetSlice(slice("c", "c", "p:8080/TCP", "10.2.0.0", "10.2.9.2")) },
			"10.96.0.2:80", "10.2.0.0:8080,10.2.9.2:8080"},
		{"a larger range in the room of others', slots full", func(s *maps.Sizes) { s.Slots = 16 },
			func(r *rig) { eight(r, "p:80/TCP", "", "") },
			func(r *rig) {
				r.store.DeleteSlice(SliceName{"default", "a"})
				r.store.DeleteSlice(SliceName{"default", "h"})
				r.store.SetSlice(slice("c", "c", "p:8080/TCP", "10.2.9.1", "10.2.9.2", "10.2.9.3"))
			}, "10.96.0.2:80", "10.2.9.1:8080,10.2.9.2:8080,10.2.9.3:8080"},
		{"another node port, services full", func(s *maps.Sizes) { s.Services = 16 },
			func(r *rig) {
				for i := range 8 {
					r.store.SetService(service(string(rune('a'+i)), fmt.Sprintf("10.96.0.%d", i), fmt.Sprintf("p:80/TCP:%d", 30000+i)))
				}
			},
			func(r *rig) { r.store.SetService(service("c", "10.96.0.2", "p:80/TCP:30099")) },
			"0.0.0.0:30099", ""},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %t", c.what, restart), func(t *testing.T) {
				sizes := roomFor
				c.sizes(&sizes)
				eachTables(t, sizes, func(t *testing.T, tables maps.Tables) {
					clock := newTestClock()
					g := newGuard(t, tables, clock)
					g.tight = true
					r := newRig(t, g, clock)
					c.begin(r)
					r.mustStep()
					if len(r.loop.r.ledger.short) != 0 {
						t.Fatalf("no room at first for %v", r.loop.r.ledger.short)
					}
					c.change(r)
					clock.advance(grace)
					if c.what == "one endpoint replaced, slots full" {
						g.keepServing(r.fresh().dump()) // the slot range is overwritten
					}
					if restart {
						r.start()
					}
					r.settle()
					if to := r.leads(c.leads); to != c.to {
						t.Errorf("%s leads to %s, want %s", c.leads, to, c.to)
					}
					r.sameAs(r.fresh(), "healed")
				})
			})
		}
	}
}

// TestSmallerMaps checks that a daemon with smaller maps than the previous one serves the best that
// fits, by rank, and one with larger maps everything again.
func TestSmallerMaps(t *testing.T) {
	large := maps.Sizes{Services: 512, Slots: 512, Backends: 512, Affinity: 16, Sources: 64, Flows: 16}
	for what, size := range map[string]func(*maps.Sizes){
		"services": func(s *maps.Sizes) { s.Services = 24 },
		"slots":    func(s *maps.Sizes) { s.Slots = 64 },
		"backends": func(s *maps.Sizes) { s.Backends = 51 },
		"sources":  func(s *maps.Sizes) { s.Sources = 18 },
		"all of them": func(s *maps.Sizes) {
			s.Services, s.Slots, s.Backends, s.Sources = 24, 64, 51, 18
		},
	} {
		t.Run(what, func(t *testing.T) {
			root := mapstest.BPFFS(t)
			store := NewStore(newTestClock().now)
			for i := range 20 {
				store.SetService(numberedService(i).with(func(s *Service) {
					s.LoadBalancerIPs, s.SourceRanges = addrs(fmt.Sprint("1.1.1.", i)), prefixes("10.0.0.0/8")
				}))
				store.SetSlice(numberedSlice(i, 0, 5))
			}
			store.SetNodeAddrs(nodeAddrs)
			store.SetServiceCIDRs(prefixes("10.96.0.0/16"))
			small := large
			size(&small)
			for i, sizes := range []maps.Sizes{large, small, large} {
				r, end := startIn(t, root, sizes, store)
				r.sameAs(r.fresh(), fmt.Sprint("start ", i))
				d := r.dump()
				if len(d.NodeAddrs) != 6 || len(d.ServiceCIDRs) != 1 {
					t.Errorf("start %d: %d node addresses, service CIDRs %v", i, len(d.NodeAddrs), d.ServiceCIDRs)
				}
				short := len(r.loop.r.ledger.short)
				if (short > 0) != (sizes != large) {
					t.Errorf("start %d: %d services lack room", i, short)
				}
				r.checkRoom(fmt.Sprint("start ", i))
				end()
			}
		})
	}
}

// TestSmallerMapsWithManyAddresses has more addresses than the smaller map addrs has room for, with
// the node's own among them.
func TestSmallerMapsWithManyAddresses(t *testing.T) {
	root := mapstest.BPFFS(t)
	store := NewStore(newTestClock().now)
	for i := range 4500 {
		store.SetService(service(fmt.Sprint("s", i), netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()))
	}
	store.SetNodeAddrs(nodeAddrs)
	for i, services := range []uint32{8192, 32} {
		sizes := roomy
		sizes.Services = services
		r, end := startIn(t, root, sizes, store)
		r.sameAs(r.fresh(), fmt.Sprint("start ", i))
		if d := r.dump(); len(d.NodeAddrs) != 6 || len(d.Frontends) != min(4500, int(services)) {
			t.Errorf("start %d: %d node addresses, %d cluster IPs", i, len(d.NodeAddrs), len(d.Frontends))
		}
		end()
	}
}

// startIn starts a daemon's part of this package with the maps below root and what store has, and
// settles it. end commits the maps and closes them.
func startIn(t *testing.T, root string, sizes maps.Sizes, store *Store) (r *rig, end func()) {
	t.Helper()
	set, _, err := maps.Open(root, sizes)
	if err != nil {
		t.Fatalf("open maps of %+v: %v", sizes, err)
	}
	k, err := maps.NewKernel(set)
	if err != nil {
		t.Fatal(err)
	}
	k.UpdateMeta(func(m *maps.DaemonMeta) { m.Abi = abiOf(t) })
	r = newRig(t, k, newTestClock())
	store.copyTo(r.store)
	r.clock.advance(grace)
	r.settle()
	return r, func() {
		t.Helper()
		_, err := set.Commit()
		if err := errors.Join(err, k.Close(), set.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func abiOf(t *testing.T) uint32 {
	t.Helper()
	abi, err := maps.ABI()
	if err != nil {
		t.Fatal(err)
	}
	return abi
}

// fewAddrs is Tables with room for a few addresses of the node, and as many service CIDRs.
type fewAddrs struct {
	maps.Tables
	room        int
	addrs       map[netip.Addr]bool
	cidrs       map[netip.Prefix]bool
	refuseAddr  netip.Addr
	refuseRange netip.Prefix
}

func (f *fewAddrs) SetNodeAddr(a netip.Addr, flags uint32) error {
	if a == f.refuseAddr || !f.addrs[a] && len(f.addrs) >= f.room {
		return roomy.NewFullError(maps.NameAddrs)
	}
	f.addrs[a] = true
	return f.Tables.SetNodeAddr(a, flags)
}

func (f *fewAddrs) DeleteNodeAddr(a netip.Addr) error {
	delete(f.addrs, a)
	return f.Tables.DeleteNodeAddr(a)
}

func (f *fewAddrs) SetServiceCIDR(p netip.Prefix) error {
	if p == f.refuseRange || !f.cidrs[p] && len(f.cidrs) >= f.room {
		return roomy.NewFullError(maps.NameSources)
	}
	f.cidrs[p] = true
	return f.Tables.SetServiceCIDR(p)
}

func (f *fewAddrs) DeleteServiceCIDR(p netip.Prefix) error {
	delete(f.cidrs, p)
	return f.Tables.DeleteServiceCIDR(p)
}

// TestAddrsAndCIDRsMakeRoom checks that removals make room for additions, and that one refused
// addition does not prevent others.
func TestAddrsAndCIDRsMakeRoom(t *testing.T) {
	f := &fewAddrs{Tables: maps.NewFake(roomy), room: 2, addrs: map[netip.Addr]bool{}, cidrs: map[netip.Prefix]bool{}}
	r := newRig(t, f, newTestClock())
	r.store.SetNodeAddrs(addrs("192.168.0.1", "192.168.0.2"))
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/16", "10.97.0.0/16"))
	r.mustStep()
	r.store.SetNodeAddrs(addrs("192.168.0.3", "192.168.0.4"))
	r.store.SetServiceCIDRs(prefixes("10.98.0.0/16", "10.99.0.0/16"))
	r.mustStep()
	f.refuseAddr, f.refuseRange = addrs("192.168.0.5")[0], prefixes("10.95.0.0/16")[0]
	r.store.SetNodeAddrs(addrs("192.168.0.5", "192.168.0.6"))
	r.store.SetServiceCIDRs(prefixes("10.95.0.0/16", "10.94.0.0/16"))
	if r.step().Err == nil {
		t.Fatal("nothing has failed")
	}
	if d := r.dump(); len(d.NodeAddrs) != 1 || len(d.ServiceCIDRs) != 1 {
		t.Errorf("beside what is refused there are %v and %v", d.NodeAddrs, d.ServiceCIDRs)
	}
	f.refuseAddr, f.refuseRange = netip.Addr{}, netip.Prefix{}
	r.settle()
	if d := r.dump(); len(d.NodeAddrs) != 2 || len(d.ServiceCIDRs) != 2 {
		t.Errorf("in the end there are %v and %v", d.NodeAddrs, d.ServiceCIDRs)
	}
}

// TestClusterIPsLeaveRoomForNodeAddrs checks that cluster IPs as a whole, which take no entry of
// map services, leave the room in map addrs that is kept for the node's addresses.
func TestClusterIPsLeaveRoomForNodeAddrs(t *testing.T) {
	sizes := roomy
	sizes.Services = 16
	r := newRig(t, maps.NewFake(sizes), newTestClock())
	for i := range 4500 {
		r.store.SetService(service(fmt.Sprint("s", i), netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()))
	}
	r.mustStep()
	r.store.SetNodeAddrs(nodeAddrs)
	r.mustStep()
	if d := r.dump(); len(d.NodeAddrs) != 6 || len(d.Frontends) != 16 {
		t.Errorf("%d addresses of the node take node ports, %d cluster IPs are programmed", len(d.NodeAddrs), len(d.Frontends))
	}
}
