// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// idModel is what must hold for an idPool after any operations.
type idModel struct {
	max    uint32
	used   map[uint32]bool
	rested map[uint32]time.Time // returned ids, and when
}

func checkIDs(t *testing.T, c chooser, rounds int) {
	t.Helper()
	clock := newTestClock()
	m := idModel{max: uint32(1 + c(20)), used: map[uint32]bool{}, rested: map[uint32]time.Time{}}
	p := newIDPool(m.max)
	if c.oneIn(2) { // adopted maps, also with ids out of range
		adopted := map[uint32]bool{}
		for range c(15) {
			id := uint32(c(30))
			adopted[id] = true
			if id >= 1 && id <= m.max {
				m.used[id] = true
			}
		}
		p.reserve(adopted)
	}
	for i := 0; i < rounds; i++ {
		switch c(4) {
		case 0, 1:
			m.get(t, p, clock)
		case 2:
			for id := range m.used {
				p.put(id, clock.t)
				delete(m.used, id)
				m.rested[id] = clock.t
				break
			}
		case 3:
			clock.advance(time.Duration(c(4)) * grace / 3)
		}
		if int(p.used) != len(m.used) {
			t.Fatalf("operation %d: %d in use, want %d", i, p.used, len(m.used))
		}
	}
	// In the end each id can be allocated once.
	clock.advance(grace)
	for len(m.used) < int(m.max) {
		if !m.get(t, p, clock) {
			t.Fatalf("only %d of %d ids can be in use", len(m.used), m.max)
		}
	}
	if _, ok := p.get(clock.t); ok {
		t.Fatal("more ids than there are")
	}
}

func (m *idModel) get(t *testing.T, p *idPool, clock *testClock) bool {
	t.Helper()
	id, ok := p.get(clock.t)
	if !ok {
		resting := 0
		for _, since := range m.rested {
			if clock.t.Before(since.Add(grace)) {
				resting++
			}
		}
		if len(m.used)+resting < int(m.max) {
			t.Fatalf("no id, with %d in use and %d resting of %d", len(m.used), resting, m.max)
		}
		return false
	}
	if id == 0 || id > m.max || m.used[id] {
		t.Fatalf("id %d of %d, in use are %v", id, m.max, m.used)
	}
	if since, was := m.rested[id]; was && clock.t.Before(since.Add(grace)) {
		t.Fatalf("id %d after %s, grace is %s", id, clock.t.Sub(since), grace)
	}
	delete(m.rested, id)
	m.used[id] = true
	return true
}

func TestIDPool(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 3000 {
		checkIDs(t, r.IntN, 100)
	}
}

func FuzzIDPool(f *testing.F) {
	f.Add([]byte("\x05\x00\x03\x02\x01\x00\x02\x03\x03\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) { checkIDs(t, fromBytes(data), len(data)) })
}

// TestIDPoolPutOutOfRange checks that put ignores ids out of range.
func TestIDPoolPutOutOfRange(t *testing.T) {
	clock := newTestClock()
	p := newIDPool(2)
	p.put(0, clock.t)
	p.put(3, clock.t)
	clock.advance(grace)
	a, _ := p.get(clock.t)
	b, _ := p.get(clock.t)
	if _, more := p.get(clock.t); more || a+b != 3 || p.used != 2 {
		t.Errorf("ids %d and %d, more: %t, in use %d", a, b, more, p.used)
	}
}

func TestOrderFor(t *testing.T) {
	for n, want := range map[uint32]order{1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 8: 3, 9: 4, 1 << 31: 31, 1<<31 - 1: 31} {
		if got := orderFor(n); got != want || got.size() < n || got > 0 && got.size()/2 >= n {
			t.Errorf("%d slots: order %d, want %d", n, got, want)
		}
	}
}

// slotModel is what must hold for a slotPool after any operations.
type slotModel struct {
	size  uint32
	owned []block
	// taken are the slots in use; freed is when a slot was returned.
	taken map[uint32]bool
	freed map[uint32]time.Time
}

func (m *slotModel) take(t *testing.T, b block, now time.Time) {
	t.Helper()
	if uint64(b.base)+uint64(b.size()) > uint64(m.size) || b.base%b.size() != 0 {
		t.Fatalf("block %+v in an array of %d", b, m.size)
	}
	for i := b.base; i < b.base+b.size(); i++ {
		if m.taken[i] {
			t.Fatalf("block %+v overlaps another: slot %d", b, i)
		}
		if since, was := m.freed[i]; was && now.Before(since.Add(grace)) {
			t.Fatalf("slot %d after %s, grace is %s", i, now.Sub(since), grace)
		}
		m.taken[i] = true
		delete(m.freed, i)
	}
	m.owned = append(m.owned, b)
}

// mustBeFull fails the test if a block of that order is free.
func (m *slotModel) mustBeFull(t *testing.T, o order, now time.Time) {
	t.Helper()
	for base := uint32(0); base+o.size() <= m.size; base += o.size() {
		free := true
		for i := base; free && i < base+o.size(); i++ {
			since, was := m.freed[i]
			free = !m.taken[i] && (!was || !now.Before(since.Add(grace)))
		}
		if free {
			t.Fatalf("no block of %d slots, but there is one at %d", o.size(), base)
		}
	}
}

func (m *slotModel) give(c chooser, p *slotPool, now time.Time) {
	if len(m.owned) == 0 {
		return
	}
	i := c(len(m.owned))
	b := m.owned[i]
	m.owned[i] = m.owned[len(m.owned)-1]
	m.owned = m.owned[:len(m.owned)-1]
	p.put(b, now)
	for s := b.base; s < b.base+b.size(); s++ {
		delete(m.taken, s)
		m.freed[s] = now
	}
}

func checkSlots(t *testing.T, c chooser, rounds int) {
	t.Helper()
	clock := newTestClock()
	m := slotModel{size: uint32(1 + c(100)), taken: map[uint32]bool{}, freed: map[uint32]time.Time{}}
	p := newSlotPool(m.size)
	whole := fmt.Sprint(p.free)
	for range c(6) { // adopted maps
		b := block{uint32(c(110)), order(c(5))}
		free := b.base%b.size() == 0 && b.base+b.size() <= m.size
		for s := b.base; free && s < b.base+b.size(); s++ {
			free = !m.taken[s]
		}
		if p.reserve(b) != free {
			t.Fatalf("reserve %+v of %d: %t", b, m.size, !free)
		}
		if free {
			m.take(t, b, clock.t)
		}
	}
	for range rounds {
		switch c(4) {
		case 0, 1:
			n := uint32(1 + c(20))
			b, ok := p.get(n, clock.t)
			if !ok {
				m.mustBeFull(t, orderFor(n), clock.t)
				continue
			}
			if b.size() < n || b.size() >= 2*n {
				t.Fatalf("a block of %d for %d slots", b.size(), n)
			}
			m.take(t, b, clock.t)
		case 2:
			m.give(c, p, clock.t)
		case 3:
			clock.advance(time.Duration(c(4)) * grace / 3)
		}
		if int(p.used) != len(m.taken) {
			t.Fatalf("%d slots in use, want %d", p.used, len(m.taken))
		}
	}
	for len(m.owned) > 0 {
		m.give(c, p, clock.t)
	}
	clock.advance(grace)
	for _, b := range p.resting.ready(clock.t) {
		p.merge(b)
	}
	if got := fmt.Sprint(p.free); p.used != 0 || got != whole {
		t.Fatalf("given back, the blocks are %s, were %s", got, whole)
	}
}

func TestSlotPool(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for range 3000 {
		checkSlots(t, r.IntN, 60)
	}
}

func FuzzSlotPool(f *testing.F) {
	f.Add([]byte("\x20\x03\x00\x02\x04\x01\x08\x03\x00\x05\x01\x09\x02\x00\x03\x03\x00\x10"))
	f.Fuzz(func(t *testing.T, data []byte) { checkSlots(t, fromBytes(data), len(data)) })
}

// TestSlotPoolFills checks that every slot of the array can be allocated.
func TestSlotPoolFills(t *testing.T) {
	now := newTestClock().t
	p := newSlotPool(1<<10 + 1<<3 + 1)
	for i := range 1<<10 + 1<<3 + 1 {
		if _, ok := p.get(1, now); !ok {
			t.Fatalf("full after %d slots", i)
		}
	}
	if _, ok := p.get(1, now); ok {
		t.Error("more slots than there are")
	}
	if p := newSlotPool(64); true {
		if _, ok := p.get(65, now); ok {
			t.Error("a range larger than the array")
		}
		if _, ok := p.get(33, now); !ok {
			t.Error("no range that needs the whole array")
		}
	}
}
