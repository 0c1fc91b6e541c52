// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"slices"

	"shunt/maps"
)

// placeRanges returns slot ranges with the sets that these frontends use, and writes them where
// needed. With map slots full, a range may be empty or incomplete, and err says so: see placeRange.
func (r *reconciler) placeRanges(p *servicePort, want portPlan, mine []frontendPlan) (inCluster, inLocal maps.SlotRange, err error) {
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

// ids returns the ids of the backends in a set. A backend for which addBackends had no room is left
// out.
func (r *reconciler) ids(p *servicePort, want portPlan, flag uint8) []uint32 {
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

// placeRange returns a slot range with these ids: an existing one, or a new one. No range is
// written while an entry names it, with one exception: where map slots has no room for a new range,
// the port's own range of the set is overwritten. During that, a program selects an old endpoint of
// the service or a new one. Where the own range is too small, it keeps those of its ids that are
// still in the set; or it is given up if the new range needs its room. The error then says that
// this has to be tried again. taken is the range of the other set.
func (r *reconciler) placeRange(p *servicePort, ids []uint32, local bool, taken maps.SlotRange) (maps.SlotRange, error) {
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
		return maps.SlotRange{}, full // the new range needs the room of the old one
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

// overwrite writes other ids of the same service into a slot range that is in use.
func (r *reconciler) overwrite(p *servicePort, own *slotRange, ids []uint32) (maps.SlotRange, error) {
	if !slices.Equal(own.ids, ids) {
		if err := r.tables.WriteSlots(own.base, ids); err != nil {
			return maps.SlotRange{}, fmt.Errorf("service %s: %w", p.key.service, err)
		}
		r.writes.Slots += uint64(len(ids))
		own.ids = ids
	}
	return maps.SlotRange{Base: own.base, Count: uint32(len(ids))}, nil
}

// rangeFor returns the slot range that the port's frontends use for one set only; nil where there
// is none.
func (p *servicePort) rangeFor(local bool, taken maps.SlotRange) *slotRange {
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

// freeRanges frees the slot ranges that no frontend names, and the unused part of those that were
// overwritten with fewer ids.
func (r *reconciler) freeRanges(p *servicePort) {
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

// longest returns the largest count of slots of a range that the port's frontends name.
func (p *servicePort) longest(rg slotRange) int {
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
