package lb

import (
	"fmt"

	"shunt/maps"
)

// placeRanges makes sure that there are slots with the sets that the frontends
// use which the port may have.
func (r *reconciler) placeRanges(p *port, want portPlan, mine []frontendPlan) (inCluster, inLocal maps.SlotRange, err error) {
	var cluster, local bool
	for _, f := range mine {
		cluster = cluster || !f.insideLocal || !f.outsideLocal
		local = local || f.insideLocal || f.outsideLocal
	}
	if cluster {
		if inCluster, err = r.placeRange(p, r.ids(p, want, maps.ClusterSet)); err != nil {
			return
		}
	}
	if local {
		inLocal, err = r.placeRange(p, r.ids(p, want, maps.LocalSet))
	}
	return
}

// ids gives the record ids of a set, which addBackends has made sure of.
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

func (r *reconciler) placeRange(p *port, ids []uint32) (maps.SlotRange, error) {
	if len(ids) == 0 {
		return maps.SlotRange{}, nil
	}
	if there, ok := p.rangeOf(ids); ok {
		return there, nil
	}
	b, ok := r.slots.get(uint32(len(ids)), r.now())
	if !ok {
		return maps.SlotRange{}, fmt.Errorf("service %s: find %d slots in a row: %w",
			p.key.service, len(ids), r.tables.Sizes().NewFullError(maps.NameSlots))
	}
	if err := r.tables.WriteSlots(b.base, ids); err != nil {
		r.slots.put(b, r.now())
		return maps.SlotRange{}, fmt.Errorf("service %s: %w", p.key.service, err)
	}
	r.writes.Slots += uint64(len(ids))
	p.ranges = append(p.ranges, slotRange{block: b, ids: ids})
	return maps.SlotRange{Base: b.base, Count: uint32(len(ids))}, nil
}

// freeRanges gives back the ranges that no frontend names.
func (r *reconciler) freeRanges(p *port) {
	kept := p.ranges[:0]
	for _, rg := range p.ranges {
		if p.names(rg) {
			kept = append(kept, rg)
			continue
		}
		r.slots.put(rg.block, r.now())
	}
	clear(p.ranges[len(kept):])
	p.ranges = kept
}
