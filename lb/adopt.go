package lb

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"shunt/maps"
)

// Adopted counts what a new daemon took over from the maps as it found them.
type Adopted struct {
	Frontends, Backends, Services int
}

// leftovers are ids of an adopted map that stand for nothing this daemon knows.
type leftovers struct {
	names, backends []uint32
	sources         []maps.SourceKey
	// ids are service ids that entries have and names don't; slots are named by
	// frontends of which we can't tell the ranges. Neither is used for anything
	// else while those entries are there.
	ids   []uint32
	slots []block
}

// adopt takes what the maps hold for programmed, by the names of service ids.
// What has no name, or contradicts itself, is left to prune.
func (r *reconciler) adopt(d *maps.Dump) Adopted {
	for a, flags := range d.NodeAddrs {
		r.nodeAddrs[a] = flags
	}
	r.cidrs = slices.Clone(d.ServiceCIDRs)
	byID := r.adoptNames(d)
	r.adoptBackends(d, byID)
	r.adoptSources(d, byID)
	for k, v := range d.Frontends {
		r.count(k, 1)
		p := byID[v.Id]
		if p == nil || !r.adoptRanges(p, d, v) {
			r.orphans[k] = v
			continue
		}
		p.frontends = append(p.frontends, frontend{k, v})
		r.owners[k] = p
	}
	r.adoptServiceIDs(d)
	for _, v := range r.orphans {
		r.holdSlots(v.Inside)
		r.holdSlots(v.Outside)
	}
	return Adopted{Frontends: len(d.Frontends), Backends: len(d.Backends), Services: len(byID)}
}

// adoptServiceIDs keeps every id that anything in the maps has from being given
// to another service.
func (r *reconciler) adoptServiceIDs(d *maps.Dump) {
	ids := map[uint32]bool{}
	for id := range d.Names {
		ids[id] = true
	}
	note := func(id uint32) {
		if !ids[id] && r.services.has(id) {
			ids[id] = true
			r.left.ids = append(r.left.ids, id)
		}
	}
	for _, v := range d.Frontends {
		note(v.Id)
	}
	for _, be := range d.Backends {
		note(be.ServiceId)
	}
	for k := range d.Sources { // or they would let somebody in to another service
		note(k.ServiceId)
	}
	r.services.reserve(ids)
}

// holdSlots keeps slots from being written as long as an orphan names them.
func (r *reconciler) holdSlots(s maps.SlotRange) {
	end := min(uint64(s.Base)+uint64(s.Count), uint64(r.slots.size))
	for i := uint64(s.Base); i < end; i++ {
		if b := (block{base: uint32(i)}); r.slots.reserve(b) {
			r.left.slots = append(r.left.slots, b)
		}
	}
}

func (r *reconciler) adoptNames(d *maps.Dump) map[uint32]*port {
	byID := map[uint32]*port{}
	for id, n := range d.Names {
		key := keyOf(n)
		twice := slices.ContainsFunc(r.ports[key.service], func(p *port) bool { return p.key == key })
		if !r.services.has(id) || key.protocol == 0 || twice {
			r.left.names = append(r.left.names, id)
			continue
		}
		p := &port{key: key, id: id}
		byID[id] = p
		r.ports[key.service] = append(r.ports[key.service], p)
	}
	return byID
}

func (r *reconciler) adoptBackends(d *maps.Dump, byID map[uint32]*port) {
	records := map[uint32]bool{}
	for id, be := range d.Backends {
		records[id] = true
		p := byID[be.ServiceId]
		if p == nil {
			r.left.backends = append(r.left.backends, id)
			continue
		}
		at, twice := p.backend(be.AddrPort())
		if twice {
			r.left.backends = append(r.left.backends, id)
			continue
		}
		p.backends = slices.Insert(p.backends, at, backend{be.AddrPort(), id, be.Flags})
	}
	r.records.reserve(records)
}

// adoptRanges takes over the slots that a frontend names; false where they are
// not such as we make.
func (r *reconciler) adoptRanges(p *port, d *maps.Dump, v maps.Service) bool {
	for _, s := range []maps.SlotRange{v.Inside, v.Outside} {
		if s.Count == 0 {
			continue
		}
		ids, err := d.Range(s)
		foreign := func(id uint32) bool { return d.Backends[id].ServiceId != v.Id }
		if err != nil || slices.ContainsFunc(ids, foreign) {
			return false // or it would take another service's slots for its own
		}
		known := slices.ContainsFunc(p.ranges, func(r slotRange) bool {
			return r.base == s.Base && slices.Equal(r.ids, ids)
		})
		if known {
			continue
		}
		b := block{s.Base, orderFor(s.Count)}
		if bits.Len32(s.Count) > 31 || !r.slots.reserve(b) {
			return false
		}
		p.ranges = append(p.ranges, slotRange{block: b, ids: slices.Clone(ids)})
	}
	return true
}

// prune removes from the maps what adopt could not make sense of and no service
// has claimed by the end of the first reconcile.
func (r *reconciler) prune() error {
	const what = "remove what an earlier daemon left: %w"
	var errs []error
	for k := range r.orphans {
		if err := r.tables.DeleteFrontend(k); err != nil {
			errs = append(errs, err)
			continue
		}
		r.writes.Frontends++
		r.count(k, -1)
		delete(r.orphans, k)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf(what, err) // they may still lead to the rest
	}
	if err := r.pruneSources(); err != nil {
		return fmt.Errorf(what, err) // or they would be those of the next service with the id
	}
	free := func(ids []uint32, free func(uint32) error, pool *idPool, writes *uint64) []uint32 {
		return slices.DeleteFunc(ids, func(id uint32) bool {
			err := free(id)
			if err == nil {
				*writes++
				pool.put(id, r.now())
			}
			errs = append(errs, err)
			return err == nil
		})
	}
	r.left.backends = free(r.left.backends, r.tables.FreeBackend, r.records, &r.writes.Backends)
	r.left.names = free(r.left.names, r.tables.DeleteName, r.services, &r.writes.Names)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf(what, err)
	}
	for _, id := range r.left.ids {
		r.services.put(id, r.now())
	}
	for _, b := range r.left.slots {
		r.slots.put(b, r.now())
	}
	r.left = leftovers{}
	return nil
}
