package lb

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"shunt/maps"
)

// modelGranted is a slow model of which frontends find room: by rank over all
// services, in a rank by age and name, in a service by ports and addresses; each is
// tried by counting everything again.
func modelGranted(st *Store, at place, sizes maps.Sizes) map[maps.FrontendKey]bool {
	owners := modelOwners(st)
	var services []*Service
	for _, svc := range st.services {
		services = append(services, svc)
	}
	slices.SortFunc(services, func(a, b *Service) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return a.Name.compare(b.Name)
	})
	type chosen struct {
		plan *portPlan
		f    frontendPlan
	}
	var has []chosen
	fits := func() bool {
		ports, entries, addresses := map[portKey]*portPlan{}, 0, 0
		blocks, sources, records := map[string]int{}, map[portKey]int{}, 0
		for _, c := range has {
			switch {
			case c.f.key.Port == 0:
				addresses++
				continue
			case c.f.kind == maps.LoadBalancerIP || c.f.kind == maps.ExternalIP:
				addresses++
			}
			entries++
			ports[c.plan.key] = c.plan
			for _, local := range []bool{c.f.insideLocal, c.f.outsideLocal} {
				flag := maps.ClusterSet
				if local {
					flag = maps.LocalSet
				}
				if in := c.plan.inSet(flag); len(in) > 0 {
					size := 1
					for size < len(in) {
						size *= 2
					}
					blocks[fmt.Sprint(c.plan.key, in)] = size
				}
			}
			if c.f.ranged {
				sources[c.plan.key] = len(c.plan.sources)
			}
		}
		slots, ranges := 0, len(at.cidrs)
		for _, n := range blocks {
			slots += n
		}
		for _, n := range sources {
			ranges += n
		}
		for _, p := range ports {
			records += len(p.backends)
		}
		return entries <= int(sizes.Services) && len(ports) <= int(sizes.Services) && records < int(sizes.Backends) &&
			slots <= int(sizes.Slots) && (ranges <= int(sizes.Sources) || len(sources) == 0) && addresses <= int(sizes.Services)
	}
	granted := map[maps.FrontendKey]bool{}
	for r := range ranks {
		for _, svc := range services {
			plans := planService(svc, st.slices[svc.Name], at)
			for i := range plans {
				for _, f := range plans[i].frontends {
					if owners[f.key].svc != svc || owners[f.key].kind != f.kind || int(rankOf(f.kind)) != r {
						continue
					}
					has = append(has, chosen{&plans[i], f})
					if granted[f.key] = fits(); !granted[f.key] {
						has = has[:len(has)-1]
						delete(granted, f.key)
					}
				}
			}
		}
	}
	return granted
}

// checkRoom compares the frontends in the maps with the model.
func (r *rig) checkRoom(what string) {
	r.t.Helper()
	around := r.store.surroundings()
	at := place{node: "me", addrs: outsideAddrs(around.addrs), cidrs: r.loop.cidrs}
	if around.node != nil {
		at.zone = around.node.Zone
	}
	d, want := r.dump(), modelGranted(r.store, at, r.tables.Sizes())
	for k := range d.Frontends {
		if !want[k] {
			r.t.Errorf("%s: %s is there, and should not be", what, k)
		}
	}
	for k := range want {
		if _, there := d.Frontends[k]; !there {
			r.t.Errorf("%s: %s is not there, and there is room for it", what, k)
		}
	}
}

// claimProblems gives the problems of one service's claims, as they are published.
func (r *rig) claimProblems(name string) []Problem {
	var list []Problem
	for _, p := range r.loop.Status().Problems.List {
		if p.Service == svcName(name) {
			list = append(list, p)
		}
	}
	return list
}

// flood is a service that asks for very many external frontends, at one port each of
// 100, and is older than the others.
func flood(ips, ports int) *Service {
	s := service("a-flood", "10.96.255.1")
	s.Created = time.Unix(1, 0)
	for i := range ports {
		s.Ports = append(s.Ports, ServicePort{Name: fmt.Sprint("p", i), Protocol: TCP, Port: uint16(1000 + i)})
	}
	for i := range ips {
		s.ExternalIPs = append(s.ExternalIPs, netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}))
	}
	return s
}

// TestFloodServiceHarmsNobody: an older Service asks for more than there is room for;
// ordinary ones that come after, or together with it, are served, and it keeps the
// room that is left, whatever came first.
func TestFloodServiceHarmsNobody(t *testing.T) {
	sizes := maps.Sizes{Services: 400, Slots: 1024, Backends: 512, Affinity: 16, Sources: 16, Flows: 16}
	for _, order := range []string{"flood first", "flood last", "together", "adopted"} {
		t.Run(order, func(t *testing.T) {
			eachTables(t, sizes, func(t *testing.T, tables maps.Tables) {
				r := newRig(t, tables, newTestClock())
				ordinary := func() {
					for i := range 40 {
						r.store.SetService(numberedService(i).with(func(s *Service) {
							s.Created, s.Ports[0].NodePort = time.Unix(int64(100+i), 0), uint16(30000+i)
						}))
						r.store.SetSlice(numberedSlice(i, 0, 10))
						if order == "flood first" {
							r.mustStep() // with no time for anything to rest
						}
					}
				}
				if order == "flood last" {
					ordinary()
					r.mustStep()
				}
				r.store.SetService(flood(132, 10))
				if order == "flood first" || order == "adopted" {
					r.mustStep()
				}
				if order != "flood last" {
					ordinary()
				}
				if order == "adopted" {
					r.start()
				}
				r.settle()
				for i := range 40 {
					ip := fmt.Sprintf("10.96.0.%d:80", i)
					if to := r.leads(ip); strings.Count(to, ",") != 9 {
						t.Fatalf("service %d leads to %s", i, to)
					}
				}
				d := r.dump()
				if n := r.loop.r.entries; n != 400 || len(d.Frontends) != 400+41 {
					t.Errorf("%d entries of 400 are used, %d frontends in all", n, len(d.Frontends))
				}
				r.sameAs(r.fresh(), order)
			})
		})
	}
}

// TestCutService: a service has no more frontends than it may, always the same ones,
// by rank; it is said.
func TestCutService(t *testing.T) {
	r := newGuardedRig(t)
	r.loop.o.MaxFrontends = 12
	svc := flood(30, 4).with(func(s *Service) {
		s.LoadBalancerIPs = addrs("1.1.1.1")
		for i := range s.Ports {
			s.Ports[i].NodePort = uint16(30000 + i)
		}
	})
	r.store.SetService(svc)
	r.mustStep()
	kinds := map[maps.FrontendKind]int{}
	for _, v := range r.dump().Frontends {
		kinds[maps.FrontendKind(v.Kind)]++
	}
	// 1 + 4 for the cluster IP, 4 node ports, and 3 of 4 at the load-balancer IP.
	if kinds[maps.ClusterIP] != 4 || kinds[maps.UndefinedPort] != 1 || kinds[maps.NodePort] != 4 ||
		kinds[maps.LoadBalancerIP] != 3 || kinds[maps.ExternalIP] != 0 {
		t.Errorf("the kinds are %v", kinds)
	}
	if p := r.claimProblems("a-flood"); len(p) != 1 || p[0].Kind != maps.Cut || !strings.Contains(p[0].Error, "121 frontends more") {
		t.Errorf("it is said: %+v", p)
	}
	r.store.SetService(svc.with(func(s *Service) { s.ExternalIPs, s.LoadBalancerIPs = nil, nil }))
	r.mustStep()
	if n := r.loop.Status().Problems.Total; n != 0 {
		t.Errorf("%d problems, with nothing cut", n)
	}
}

// TestFullMapsHeal: where a map is full, what goes makes room for what comes, inside
// one service too, and over a restart.
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

// TestSmallerMaps: a daemon with smaller maps than its predecessor's serves the best
// that fits, and larger ones all again.
func TestSmallerMaps(t *testing.T) {
	r := newRig(t, maps.NewFake(roomy), newTestClock())
	for i := range 20 {
		r.store.SetService(numberedService(i).with(func(s *Service) { s.ExternalIPs = addrs(fmt.Sprint("1.1.1.", i)) }))
	}
	r.store.SetNodeAddrs(nodeAddrs)
	r.mustStep()
	small := roomy
	small.Services = 24
	f := newRig(t, maps.NewFake(small), newTestClock())
	r.store.copyTo(f.store)
	f.mustStep()
	kinds := map[maps.FrontendKind]int{}
	for _, v := range f.dump().Frontends {
		kinds[maps.FrontendKind(v.Kind)]++
	}
	if kinds[maps.ClusterIP] != 20 || kinds[maps.ExternalIP] != 4 || len(f.dump().NodeAddrs) != 6 {
		t.Errorf("in small maps: %v, %d node addresses", kinds, len(f.dump().NodeAddrs))
	}
}

// TestRoomByModel compares who finds room with the slow model, in random worlds and
// small maps, in which objects come and go in any order and writes fail.
func TestRoomByModel(t *testing.T) {
	runs := 200
	if testing.Short() {
		runs = 60
	}
	for i := range runs {
		random := rand.New(rand.NewPCG(uint64(i), 3))
		c := chooser(random.IntN)
		sizes := maps.Sizes{Services: uint32(8 + c(24)), Slots: uint32(8 + c(32)), Backends: uint32(8 + c(24)), Affinity: 16,
			Sources: uint32(2 + c(8)), Flows: 16}
		clock := newTestClock()
		f := &faults{c: c, lives: -1}
		g := newGuard(t, maps.NewFake(sizes), clock)
		g.tight = true
		r := newRig(t, &maps.Faulty{Tables: g, Fail: f.fail}, clock)
		r.store.SetNode(&Node{Name: "me", Zone: "z1"})
		r.store.SetNodeAddrs(nodeAddrs)
		w := &world{c: c, store: r.store, ageless: c.oneIn(4)}
		for range 12 {
			for range 1 + c(4) {
				w.change()
			}
			f.rate = pick(c, []int{0, 4})
			r.step()
			if c.oneIn(6) {
				clock.advance(grace)
				r.start()
			}
			if c.oneIn(2) {
				f.rate = 0
				r.settle()
				r.checkRoom("settled")
				r.sameAs(r.fresh(), "settled")
			}
			if t.Failed() {
				t.Fatalf("seed %d", i)
			}
		}
	}
}
