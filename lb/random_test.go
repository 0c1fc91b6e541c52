// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"math/rand/v2"
	"testing"
	"time"

	"shunt/maps"
)

// roomy has room for everything that world makes; tight has not.
var (
	roomy = maps.Sizes{Services: 256, Slots: 1024, Backends: 512, Affinity: 16, Sources: 256, Flows: 16}
	tight = maps.Sizes{Services: 20, Slots: 32, Backends: 20, Affinity: 16, Sources: 3, Flows: 16}
)

// faults fails writes: some, or all after a number of them, like a daemon that is killed then.
type faults struct {
	c chooser
	// rate: one write of that many fails; 0: none.
	rate int
	// lives counts the writes until all fail; negative: no limit.
	lives int
}

func (f *faults) fail(string) error {
	if f.lives == 0 || f.rate != 0 && f.c.oneIn(f.rate) {
		return errFault
	}
	if f.lives > 0 {
		f.lives--
	}
	return nil
}

// checkRandom makes random changes, has a loop follow them with faults and kills, and checks the
// maps after each write.
func checkRandom(t *testing.T, c chooser, sizes maps.Sizes, rounds int) {
	t.Helper()
	clock := newTestClock()
	g := newGuard(t, maps.NewFake(sizes), clock)
	f := &faults{c: c, lives: -1}
	r := newRig(t, &maps.Faulty{Tables: g, Fail: f.fail}, clock)
	r.store.SetNode(&Node{Name: "me", Zone: "z1"})
	r.store.SetNodeAddrs(nodeAddrs)
	w := &world{c: c, store: r.store, ageless: c.oneIn(4)}
	var story []string
	defer func() {
		if t.Failed() {
			t.Logf("after %q", story)
		}
	}()
	g.tight = sizes != roomy
	for range rounds {
		for range 1 + c(3) {
			story = append(story, w.change())
		}
		fresh := r.fresh()
		if sizes == roomy {
			g.keepServing(fresh.dump())
		}
		f.rate = pick(c, []int{0, 0, 5, 5, 3})
		if c.oneIn(8) {
			f.lives = c(30)
		}
		r.step()
		if f.lives >= 0 { // a new daemon, some time later
			story = append(story, "killed")
			f.lives = -1
			clock.advance(time.Second)
			r.start()
			r.step()
		}
		clock.advance(time.Duration(c(3)) * grace / 2)
		if c.oneIn(2) {
			f.rate = 0
			r.settle()
			r.sameAs(fresh, "settled")
			if sizes == roomy {
				r.checkOwners("settled")
			}
			story = append(story, "settled")
		}
		if t.Failed() {
			return
		}
	}
	f.rate = 0
	checkEmptied(t, r, g)
}

// checkEmptied deletes all objects, and checks that the maps are empty.
func checkEmptied(t *testing.T, r *rig, g *guard) {
	t.Helper()
	g.serving, g.admits = nil, nil
	for name := range r.store.services {
		r.store.DeleteService(name)
	}
	r.store.SetNodeAddrs(addrs())
	r.store.SetServiceCIDRs(nil)
	r.clock.advance(grace)
	r.settle()
	if text := r.dump().Text(); text != "" {
		t.Errorf("with everything deleted the maps hold\n%s", text)
	}
	if u := r.used(); u != (used{}) {
		t.Errorf("with everything deleted there are in use %+v", u)
	}
	if n := len(r.loop.r.ports) + len(r.loop.r.owners) + len(r.loop.r.orphans) + len(r.loop.r.nodeAddrs) + len(r.loop.ranged) +
		len(r.loop.r.wishes) + len(r.loop.r.outer) + len(r.loop.r.claims.to) + len(r.loop.r.claims.under) + len(r.loop.r.keeping) + len(r.loop.r.listedUntil); n != 0 {
		t.Errorf("with everything deleted the loop remembers %d things", n)
	}
}

func TestRandomChanges(t *testing.T) {
	runs := 150
	if testing.Short() {
		runs = 50
	}
	for i := range runs {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		checkRandom(t, r.IntN, roomy, 25)
		if t.Failed() {
			t.Fatalf("seed %d", i)
		}
	}
}

// TestRandomChangesInTightMaps makes random changes in maps that are too small. Their contents keep
// working, and when there is room again everything is as it should be.
func TestRandomChangesInTightMaps(t *testing.T) {
	runs := 150
	if testing.Short() {
		runs = 25
	}
	for i := range runs {
		r := rand.New(rand.NewPCG(uint64(i), 2))
		checkRandom(t, r.IntN, tight, 25)
		if t.Failed() {
			t.Fatalf("seed %d", i)
		}
	}
}

// TestRandomChangesInMapsOfAnySize makes random changes in maps of any sizes. The first seeds found
// defects.
func TestRandomChangesInMapsOfAnySize(t *testing.T) {
	seeds := []uint64{1648, 2306}
	for i := range 50 {
		seeds = append(seeds, uint64(i))
	}
	if testing.Short() {
		seeds = seeds[:12]
	}
	for _, seed := range seeds {
		c := chooser(rand.New(rand.NewPCG(seed, 77)).IntN)
		sizes := maps.Sizes{Services: uint32(8 + c(24)), Slots: uint32(8 + c(32)), Backends: uint32(8 + c(24)), Affinity: 16,
			Sources: uint32(2 + c(8)), Flows: 16}
		checkRandom(t, c, sizes, 25)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzRandomChanges(f *testing.F) {
	r := rand.New(rand.NewPCG(9, 9))
	for range 8 {
		seed := make([]byte, 2000)
		for i := range seed {
			seed[i] = byte(r.Uint32())
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		checkRandom(t, fromBytes(data), roomy, min(len(data)/60+1, 20))
	})
}
