// SPDX-License-Identifier: Apache-2.0

package lb

import (
	stdmaps "maps"
	"slices"

	"shunt/maps"
)

// compact moves slot ranges until there will be a free block of an order. It is called when enough
// slots are free but not adjacent. The slots that a range leaves rest before they can be used, so
// this takes several calls, a grace period apart.
//
// Of two free blocks of one size, one takes the ranges from the buddy of the other: then that one
// and its buddy are a free block of twice the size. Two free blocks of some size exist: otherwise
// the free blocks would not be large enough together.
//
// taken, which the port under way is about to use, is not moved.
func (r *reconciler) compact(want order, taken maps.SlotRange) error {
	if r.slots.busy(r.now()) {
		return nil // blocks that rest now may be enough
	}
	c := compaction{r: r, at: map[uint32]*servicePort{}}
	for _, ports := range r.ports {
		for _, p := range ports {
			for _, rg := range p.ranges {
				if p.names(rg) && (taken.Count == 0 || taken.Base != rg.base) {
					c.at[rg.base] = p
				}
			}
		}
	}
	return c.gather(want, 1)
}

type compaction struct {
	r *reconciler
	// at has the port of each slot range that can be moved, by the base of the range.
	at map[uint32]*servicePort
}

// gather works towards n free blocks of an order.
func (c *compaction) gather(o order, n int) error {
	missing := n - len(c.r.slots.free[o])
	if o == 0 || missing <= 0 {
		return nil
	}
	if err := c.gather(o-1, 2*missing); err != nil {
		return err
	}
	for range missing {
		if joined, err := c.join(o - 1); !joined || err != nil {
			return err
		}
	}
	return nil
}

// join moves the ranges in the buddy of one free block of an order into another free block.
func (c *compaction) join(o order) (bool, error) {
	free := slices.Sorted(stdmaps.Keys(c.r.slots.free[o]))
	for i, base := range free {
		beside := block{base ^ o.size(), o}
		parts, ok := c.parts(beside)
		if !ok {
			continue
		}
		for j, to := range free {
			if j == i {
				continue
			}
			for _, part := range parts {
				if err := c.move(part, part.base-beside.base+to); err != nil {
					return false, err
				}
			}
			return true, nil
		}
	}
	return false, nil
}

// parts returns the slot ranges in a block; false where the block also has something that cannot be
// moved.
func (c *compaction) parts(b block) ([]block, bool) {
	if b.base+b.size() > c.r.slots.size {
		return nil, false
	}
	var parts []block
	for base := b.base; base < b.base+b.size(); {
		if o, free := c.r.slots.isFree(base, b.order); free {
			base += o.size()
			continue
		}
		p := c.at[base]
		if p == nil {
			return nil, false
		}
		i := slices.IndexFunc(p.ranges, func(rg slotRange) bool { return rg.base == base })
		if i < 0 || p.ranges[i].order > b.order {
			return nil, false
		}
		parts = append(parts, p.ranges[i].block)
		base += p.ranges[i].size()
	}
	return parts, true
}

// move writes a slot range at another base, and changes the port's frontends to use it there.
func (c *compaction) move(from block, base uint32) error {
	r, p := c.r, c.at[from.base]
	to := block{base, from.order}
	if !r.slots.reserve(to) {
		return nil
	}
	i := slices.IndexFunc(p.ranges, func(rg slotRange) bool { return rg.base == from.base })
	ids := p.ranges[i].ids
	if err := r.tables.WriteSlots(base, ids); err != nil {
		r.slots.put(to, r.now())
		return err
	}
	r.writes.Slots += uint64(len(ids))
	p.ranges = append(p.ranges, slotRange{block: to, ids: ids})
	c.at[base] = p
	defer func() { // no frontend uses one of the two now
		p.ranges = slices.DeleteFunc(p.ranges, func(rg slotRange) bool {
			free := (rg.base == from.base || rg.base == base) && !p.names(rg)
			if free {
				r.slots.put(rg.block, r.now())
			}
			return free
		})
	}()
	for i := range p.frontends {
		f := &p.frontends[i]
		v := f.value
		for _, side := range []*maps.SlotRange{&v.Inside, &v.Outside} {
			if side.Count > 0 && side.Base == from.base {
				side.Base = base
			}
		}
		if v == f.value {
			continue
		}
		if err := r.tables.SetFrontend(f.key, v); err != nil {
			return err
		}
		r.writes.Frontends++
		f.value = v
	}
	return nil
}
