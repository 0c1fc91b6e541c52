package lb

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

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
		slots, ranges := 0, len(at.cidrs)+exceptionRoom(sizes)
		for _, n := range blocks {
			slots += n
		}
		for _, n := range sources {
			ranges += n
		}
		for _, p := range ports {
			for _, b := range p.backends {
				if b.flags&maps.Unready == 0 { // others have a record while nobody needs the room
					records++
				}
			}
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
					if svc.NotServed || owners[f.key].svc != svc || owners[f.key].kind != f.kind || int(rankOf(f.kind)) != r {
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
