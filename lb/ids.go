// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"math/bits"
	"time"
)

// grace is how long a returned id or block of slots rests before it is used again. A program that
// looked it up earlier has ended by then: programs run for microseconds. They check what a lookup
// returns nevertheless.
const grace = 250 * time.Millisecond

// idPool allocates ids from 1 to max. It prefers returned ids to ids that were never used, and
// returned ones can be allocated after the grace period.
type idPool struct {
	max, next uint32
	free      []uint32
	resting   resting[uint32]
	used      uint32
}

func newIDPool(max uint32) *idPool { return &idPool{max: max, next: 1} }

// get allocates an id; false where all are in use.
func (p *idPool) get(now time.Time) (uint32, bool) {
	p.free = append(p.free, p.resting.ready(now)...)
	if n := len(p.free); n > 0 {
		id := p.free[n-1]
		p.free = p.free[:n-1]
		p.used++
		return id, true
	}
	if p.next > p.max {
		return 0, false
	}
	p.next++
	p.used++
	return p.next - 1, true
}

// reserve marks the ids of adopted maps as in use, if they are in the range of the pool. Call it
// once, before get.
func (p *idPool) reserve(used map[uint32]bool) {
	for id := range used {
		if p.has(id) {
			p.next = max(p.next, id+1)
			p.used++
		}
	}
	for id := uint32(1); id < p.next; id++ {
		if !used[id] {
			p.free = append(p.free, id)
		}
	}
}

// has reports whether an id is in the range of the pool.
func (p *idPool) has(id uint32) bool { return id >= 1 && id <= p.max }

// put returns an id from get or reserve to the pool. It ignores ids out of range.
func (p *idPool) put(id uint32, now time.Time) {
	if !p.has(id) {
		return
	}
	p.resting.put(id, now)
	p.used--
}

// resting holds returned items until their grace period ends.
type resting[T any] struct {
	queue []rest[T]
}

type rest[T any] struct {
	item  T
	until time.Time
}

func (r *resting[T]) put(item T, now time.Time) {
	r.queue = append(r.queue, rest[T]{item, now.Add(grace)})
}

// ready removes and returns the items whose grace period has ended.
func (r *resting[T]) ready(now time.Time) []T {
	n := 0
	for n < len(r.queue) && !r.queue[n].until.After(now) {
		n++
	}
	if n == 0 {
		return nil
	}
	items := make([]T, n)
	for i := range items {
		items[i] = r.queue[i].item
	}
	r.queue = append(r.queue[:0], r.queue[n:]...)
	return items
}

// slotPool allocates blocks of slots whose sizes are powers of two and whose bases are multiples of
// their size (a buddy allocator). So base and count of an adopted slot range determine its block.
type slotPool struct {
	size uint32
	// free holds the bases of free blocks, by order: a block of order n has 1<<n slots.
	free    [32]map[uint32]bool
	resting resting[block]
	used    uint32
}

type block struct {
	base uint32
	order
}

type order uint8

// orderFor returns the order of the smallest block with room for n slots, n > 0.
func orderFor(n uint32) order { return order(bits.Len32(n - 1)) }

func (o order) size() uint32 { return 1 << o }

func newSlotPool(size uint32) *slotPool {
	p := &slotPool{size: size}
	for o := range p.free {
		p.free[o] = map[uint32]bool{}
	}
	base := uint32(0)
	for o := 31; o >= 0; o-- {
		if size&(1<<o) != 0 {
			p.free[o][base] = true
			base += 1 << o
		}
	}
	return p
}

// get allocates a block with room for n slots; false where there is none.
func (p *slotPool) get(n uint32, now time.Time) (block, bool) {
	for _, b := range p.resting.ready(now) {
		p.merge(b)
	}
	want := orderFor(n)
	for o := want; int(o) < len(p.free); o++ {
		for base := range p.free[o] {
			return p.split(block{base, o}, block{base, want}), true
		}
	}
	return block{}, false
}

// split allocates the wanted part of a free block.
func (p *slotPool) split(from, want block) block {
	delete(p.free[from.order], from.base)
	for from.order > want.order {
		from.order--
		upper := from.base + from.size()
		if want.base >= upper {
			p.free[from.order][from.base] = true
			from.base = upper
		} else {
			p.free[from.order][upper] = true
		}
	}
	p.used += want.size()
	return want
}

// reserve allocates the given block; false where it is not free.
func (p *slotPool) reserve(want block) bool {
	if want.base%want.size() != 0 {
		return false
	}
	for o := want.order; int(o) < len(p.free); o++ {
		base := want.base &^ (o.size() - 1)
		if p.free[o][base] {
			p.split(block{base, o}, want)
			return true
		}
	}
	return false
}

func (p *slotPool) put(b block, now time.Time) {
	p.resting.put(b, now)
	p.used -= b.size()
}

// cut shrinks a block to an order, and returns the rest of it to the pool.
func (p *slotPool) cut(b block, to order, now time.Time) block {
	for b.order > to {
		b.order--
		p.put(block{b.base + b.size(), b.order}, now)
	}
	return b
}

// busy reports whether blocks rest, and become free after their grace period.
func (p *slotPool) busy(now time.Time) bool {
	for _, b := range p.resting.ready(now) {
		p.merge(b)
	}
	return len(p.resting.queue) > 0
}

// isFree returns the order of the free block at a base; it looks at orders up to most.
func (p *slotPool) isFree(base uint32, most order) (order, bool) {
	for o := most; ; o-- {
		if p.free[o][base] {
			return o, true
		}
		if o == 0 {
			return 0, false
		}
	}
}

// merge frees a block, together with its buddy where that is free too.
func (p *slotPool) merge(b block) {
	for int(b.order) < len(p.free)-1 {
		buddy := b.base ^ b.size()
		if !p.free[b.order][buddy] {
			break
		}
		delete(p.free[b.order], buddy)
		b.base &= buddy
		b.order++
	}
	p.free[b.order][b.base] = true
}
