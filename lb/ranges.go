// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"slices"

	"shunt/maps"
)

// placeRanges makes sure that there are slots with the sets that these frontends use.
// With map slots full, what can't be placed is empty, and the error says so: see
// placeRange.
func (r *reconciler) placeRanges(p *port, want portPlan, mine []frontendPlan) (inCluster, inLocal maps.SlotRange, err error) {
	var cluster, local bool
	for _, f := range mine {
		cluster = cluster || !f.insideLocal || !f.outsideLocal
		local = local || f.insideLocal || f.outsideLocal
	}
	var full error
	if cluster {
		inCluster, err = r.placeRange(p, r.ids(p, want, maps.ClusterSet), false, maps.SlotRange{})
		if err != nil && !onlyFull(err) {
			return
		}
		full = err
	}
	if local {
		inLocal, err = r.placeRange(p, r.ids(p, want, maps.LocalSet), true, inCluster)
	}
	if err == nil {
		err = full
	}
	return
}

// ids returns the record ids of a set, which addBackends has made sure of.
func (r *reconciler) ids(p *port, want portPlan, flag uint8) []uint32 {
	var ids []uint32
	for _, b := range want.backends {
		if b.flags&flag == 0 {
			continue
		}
		if i, there := p.backend(b.addr); there {
			ids = append(ids, p.backends[i].id)
		}
	}
	return ids
}

// placeRange returns a range with these ids: one that is there, or a fresh one. Where
// map slots has no room for that, the port's own range of the set is written over: a
// client is led to an old endpoint of the service or to a new one at any moment of it.
// (Else no range is written that an entry names.) Where that is too small, it keeps
// what of it is still in the set, or is given up if its room is needed for the new
// one, and the error says that this has to be tried again. taken is in use for the
// other set.
func (r *reconciler) placeRange(p *port, ids []uint32, local bool, taken maps.SlotRange) (maps.SlotRange, error) {
	if len(ids) == 0 {
		return maps.SlotRange{}, nil
	}
	if there, ok := p.rangeOf(ids); ok {
		return there, nil
	}
	need := orderFor(uint32(len(ids)))
	b, ok := r.slots.get(uint32(len(ids)), r.now())
	if ok {
		if err := r.tables.WriteSlots(b.base, ids); err != nil {
			r.slots.put(b, r.now())
			return maps.SlotRange{}, fmt.Errorf("service %s: %w", p.key.service, err)
		}
		r.writes.Slots += uint64(len(ids))
		p.ranges = append(p.ranges, slotRange{block: b, ids: ids})
		return maps.SlotRange{Base: b.base, Count: uint32(len(ids))}, nil
	}
	own := p.rangeFor(local, taken)
	if own != nil && own.order >= need {
		return r.overwrite(p, own, ids)
	}
	full := fmt.Errorf("service %s: find %d slots in a row: %w",
		p.key.service, len(ids), r.tables.Sizes().NewFullError(maps.NameSlots))
	if r.slots.size-r.slots.used < need.size() {
		return maps.SlotRange{}, full // it takes the room of what the port has
	}
	if err := r.compact(need, taken); err != nil {
		return maps.SlotRange{}, err
	}
	if own = p.rangeFor(local, taken); own == nil { // compact may have moved it
		return maps.SlotRange{}, full
	}
	kept := slices.DeleteFunc(slices.Clone(own.ids), func(id uint32) bool { return !slices.Contains(ids, id) })
	if len(kept) == 0 {
		return maps.SlotRange{}, full
	}
	s, err := r.overwrite(p, own, kept)
	if err == nil {
		err = full
	}
	return s, err
}

// overwrite writes other ids of the same service into a range that is in use.
func (r *reconciler) overwrite(p *port, own *slotRange, ids []uint32) (maps.SlotRange, error) {
	if !slices.Equal(own.ids, ids) {
		if err := r.tables.WriteSlots(own.base, ids); err != nil {
			return maps.SlotRange{}, fmt.Errorf("service %s: %w", p.key.service, err)
		}
		r.writes.Slots += uint64(len(ids))
		own.ids = ids
	}
	return maps.SlotRange{Base: own.base, Count: uint32(len(ids))}, nil
}

// rangeFor returns the range that the port's frontends use for one of the sets and not
// for the other, nil where there is none.
func (p *port) rangeFor(local bool, taken maps.SlotRange) *slotRange {
	for i := range p.ranges {
		rg := &p.ranges[i]
		var is, isOther bool
		for _, f := range p.frontends {
			for _, side := range []struct {
				maps.SlotRange
				local bool
			}{{f.value.Inside, f.value.Flags&maps.InsideLocal != 0}, {f.value.Outside, f.value.Flags&maps.OutsideLocal != 0}} {
				if side.Count > 0 && side.Base == rg.base {
					is = is || side.local == local
					isOther = isOther || side.local != local
				}
			}
		}
		if is && !isOther && (taken.Count == 0 || taken.Base != rg.base) {
			return rg
		}
	}
	return nil
}

// freeRanges frees the ranges that no frontend names, and the spare part of those that
// were overwritten with fewer ids.
func (r *reconciler) freeRanges(p *port) {
	kept := p.ranges[:0]
	for _, rg := range p.ranges {
		if !p.names(rg) {
			r.slots.put(rg.block, r.now())
			continue
		}
		if need := orderFor(uint32(len(rg.ids))); need < rg.order && p.longest(rg) <= len(rg.ids) {
			rg.block = r.slots.cut(rg.block, need, r.now())
		}
		kept = append(kept, rg)
	}
	clear(p.ranges[len(kept):])
	p.ranges = kept
}

// longest returns how many slots of a range the port's frontends name at most.
func (p *port) longest(rg slotRange) int {
	n := uint32(0)
	for _, f := range p.frontends {
		for _, side := range []maps.SlotRange{f.value.Inside, f.value.Outside} {
			if side.Count > 0 && side.Base == rg.base {
				n = max(n, side.Count)
			}
		}
	}
	return int(n)
}
