// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"fmt"
	stdmaps "maps"
	"math/rand/v2"
	"slices"
	"testing"

	"shunt/maps"
)

// chosen is a frontend of a plan that has room.
type chosen struct {
	plan *portPlan
	f    frontendPlan
}

// modelRoom returns the room that these frontends need, counted from nothing.
func modelRoom(has []chosen) (r room) {
	ports, blocks, sources := map[portKey]*portPlan{}, map[string]int{}, map[portKey]int{}
	for _, c := range has {
		switch {
		case c.f.key.Port == 0:
			r[ofAddrs]++
			continue
		case c.f.kind == maps.LoadBalancerIP || c.f.kind == maps.ExternalIP:
			r[ofAddrs]++
		}
		r[ofEntries]++
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
	r[ofNames] = int32(len(ports))
	for _, n := range blocks {
		r[ofSlots] += int32(n)
	}
	for _, n := range sources {
		r[ofSources] += int32(n)
	}
	for _, p := range ports {
		for _, b := range p.backends {
			if b.flags&maps.Unready == 0 { // the others have a backend only while the room is not needed
				r[ofRecords]++
			}
		}
	}
	return r
}

// modelGranted is a slow model of which frontends have room: by rank over all services, in a rank
// by age and name, in a service by ports and addresses. What is beyond a service's share comes
// after everything within shares, in the same order.
func modelGranted(st *Store, at place, sizes maps.Sizes, share room) map[maps.FrontendKey]bool {
	owners := modelOwners(st)
	services := slices.SortedFunc(stdmaps.Values(st.services), func(a, b *Service) int {
		return cmp.Or(a.Created.Compare(b.Created), a.Name.compare(b.Name))
	})
	within := func(r, limit room) bool { _, over := r.beyond(limit); return !over }
	limit := limitOf(sizes, len(at.cidrs)+exceptionRoom(sizes))
	var order [2][ranks][]chosen
	for _, svc := range services {
		plans := planService(svc, st.slices[svc.Name], at)
		var mine []chosen
		for r := range ranks {
			for i := range plans {
				for _, f := range plans[i].frontends {
					if svc.NotServed || owners[f.key].svc != svc || owners[f.key].kind != f.kind || int(rankOf(f.kind)) != r {
						continue
					}
					c, beyond := chosen{&plans[i], f}, 1
					if more := append(mine, c); within(modelRoom(more), share) {
						mine, beyond = more, 0
					}
					order[beyond][r] = append(order[beyond][r], c)
				}
			}
		}
	}
	granted := map[maps.FrontendKey]bool{}
	var has []chosen
	for _, c := range slices.Concat(slices.Concat(order[0][:]...), slices.Concat(order[1][:]...)) {
		if more := append(has, c); within(modelRoom(more), limit) {
			has, granted[c.f.key] = more, true
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
	d, want := r.dump(), modelGranted(r.store, at, r.tables.Sizes(), r.loop.r.ledger.share)
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

// TestRoomByModel compares which frontends have room with the slow model, in random worlds with
// small maps. Objects change in any order, and writes fail.
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
		if c.oneIn(2) { // so that a service is partly beyond its share
			r.share = &room{int32(1 + c(8)), int32(1 + c(4)), int32(c(6)), int32(c(10)), int32(c(4)), int32(1 + c(5))}
			r.start()
		}
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
