// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"shunt/maps"
)

// Adopted counts what a new daemon found in the maps.
type Adopted struct {
	Frontends, Backends, Services int
}

// leftovers are contents of adopted maps that belong to no known service port.
type leftovers struct {
	names   []uint32
	sources []maps.SourceRangeKey
	// backends has the service id of each backend, by backend id.
	backends map[uint32]uint32
	// ids are service ids that are in entries but not in map names. slots are named by frontends
	// whose slot ranges could not be adopted. Neither is used for anything else while those entries
	// exist.
	ids   []uint32
	slots []block
}

// adopt takes the contents of the maps as programmed. Map names says which service port a service
// id stands for. Contents without a name, or that contradict themselves, are left to prune.
func (r *reconciler) adopt(d *maps.Dump) Adopted {
	for a, flags := range d.NodeAddrs {
		r.nodeAddrs[a] = flags
	}
	r.cidrs = slices.Clone(d.ServiceCIDRs)
	for _, a := range d.Allocated {
		r.excepted.held[a], r.excepted.changed = true, true
	}
	byID := r.adoptNames(d)
	r.adoptBackends(d, byID)
	r.adoptSourceRanges(d, byID)
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

// adoptServiceIDs reserves every id that is in the maps, so that no other service gets it.
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
	for k := range d.Sources { // else they would allow clients of another service
		note(k.ServiceId)
	}
	r.services.reserve(ids)
}

// holdSlots reserves slots, so that they are not written while an orphan names them.
func (r *reconciler) holdSlots(s maps.SlotRange) {
	end := min(uint64(s.Base)+uint64(s.Count), uint64(r.slots.size))
	for i := uint64(s.Base); i < end; i++ {
		if b := (block{base: uint32(i)}); r.slots.reserve(b) {
			r.left.slots = append(r.left.slots, b)
		}
	}
}

// adoptNames adopts the named service ports. Two may have one name: a daemon was killed while port
// names were swapped. Both are adopted, since their frontends show which plan continues which port
// (rename.go).
func (r *reconciler) adoptNames(d *maps.Dump) map[uint32]*servicePort {
	byID := map[uint32]*servicePort{}
	for id, n := range d.Names {
		key := keyOf(n)
		if !r.services.has(id) || key.protocol == 0 {
			r.left.names = append(r.left.names, id)
			continue
		}
		p := &servicePort{key: key, id: id}
		byID[id] = p
		r.ports[key.service] = append(r.ports[key.service], p)
	}
	return byID
}

func (r *reconciler) adoptBackends(d *maps.Dump, byID map[uint32]*servicePort) {
	records := map[uint32]bool{}
	for id, be := range d.Backends {
		records[id] = true
		p := byID[be.ServiceId]
		if p == nil {
			r.left.backend(id, be.ServiceId)
			continue
		}
		p.backends = append(p.backends, backend{be.AddrPort(), id, be.Flags})
	}
	for service, p := range byID {
		slices.SortFunc(p.backends, func(a, b backend) int { return a.addr.Compare(b.addr) })
		all := p.backends
		p.backends = p.backends[:0]
		for _, b := range all {
			if n := len(p.backends); n > 0 && p.backends[n-1].addr == b.addr {
				r.left.backend(b.id, service)
				continue
			}
			p.backends = append(p.backends, b)
		}
	}
	r.records.reserve(records)
}

// adoptRanges adopts the slot ranges of a frontend. It returns false where they are not ranges that
// this package would have written.
func (r *reconciler) adoptRanges(p *servicePort, d *maps.Dump, v maps.Frontend) bool {
	for _, s := range []maps.SlotRange{v.Inside, v.Outside} {
		if s.Count == 0 {
			continue
		}
		ids, err := d.Range(s)
		foreign := func(id uint32) bool { return d.Backends[id].ServiceId != v.Id }
		if err != nil || slices.ContainsFunc(ids, foreign) {
			return false // else it would adopt slots of another service
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

func (l *leftovers) backend(id, service uint32) {
	if l.backends == nil {
		l.backends = map[uint32]uint32{}
	}
	l.backends[id] = service
}

func (l *leftovers) empty() bool {
	return len(l.names)+len(l.sources)+len(l.backends)+len(l.ids)+len(l.slots) == 0
}

// prune removes leftovers that no service has claimed by the end of the first reconcile. It keeps
// the frontends in wanted, which services that could not be programmed yet ask for, with what they
// refer to: they may work. done reports that no leftovers remain.
func (r *reconciler) prune(wanted map[maps.FrontendKey]bool) (done bool, err error) {
	var errs []error
	for k := range r.orphans {
		if wanted[k] {
			continue
		}
		if err := r.tables.DeleteFrontend(k); err != nil {
			errs = append(errs, err)
			continue
		}
		r.writes.Frontends++
		r.count(k, -1)
		delete(r.orphans, k)
	}
	inUse := map[uint32]bool{} // service ids that an entry uses
	for _, v := range r.orphans {
		inUse[v.Id] = true
	}
	errs = append(errs, r.pruneSourceRanges(inUse))
	named := r.leftButNamed()
	for id, service := range r.left.backends {
		if inUse[service] || named[id] {
			continue
		}
		if err := r.tables.FreeBackend(id); err != nil {
			errs = append(errs, err)
			continue
		}
		r.writes.Backends++
		r.records.put(id, r.now())
		delete(r.left.backends, id)
	}
	for _, k := range r.left.sources {
		inUse[k.ServiceId] = true
	}
	for _, service := range r.left.backends {
		inUse[service] = true
	}
	errs = append(errs, r.pruneIDs(inUse))
	r.pruneSlots()
	if err := errors.Join(errs...); err != nil {
		return false, fmt.Errorf("remove what an earlier daemon left: %w", err)
	}
	return len(r.orphans) == 0 && r.left.empty(), nil
}

// leftButNamed returns the leftover backends that are in a slot range of a service port: one
// endpoint had two backends, and the port was not programmed since.
func (r *reconciler) leftButNamed() map[uint32]bool {
	named := map[uint32]bool{}
	if len(r.left.backends) == 0 {
		return named
	}
	for _, ports := range r.ports {
		for _, p := range ports {
			for id := range p.namedIDs() {
				if _, left := r.left.backends[id]; left {
					named[id] = true
				}
			}
		}
	}
	return named
}

// pruneIDs frees the leftover service ids that no entry uses any more, with their names.
func (r *reconciler) pruneIDs(inUse map[uint32]bool) error {
	var errs []error
	r.left.names = slices.DeleteFunc(r.left.names, func(id uint32) bool {
		if inUse[id] {
			return false
		}
		err := r.tables.DeleteName(id)
		if err == nil {
			r.writes.Names++
			r.services.put(id, r.now())
		}
		errs = append(errs, err)
		return err == nil
	})
	r.left.ids = slices.DeleteFunc(r.left.ids, func(id uint32) bool {
		if !inUse[id] {
			r.services.put(id, r.now())
		}
		return !inUse[id]
	})
	return errors.Join(errs...)
}

// pruneSlots frees the slots that no orphan names any more.
func (r *reconciler) pruneSlots() {
	r.left.slots = slices.DeleteFunc(r.left.slots, func(b block) bool {
		for _, v := range r.orphans {
			if within(b.base, v.Inside) || within(b.base, v.Outside) {
				return false
			}
		}
		r.slots.put(b, r.now())
		return true
	})
}

func within(slot uint32, s maps.SlotRange) bool {
	return uint64(slot) >= uint64(s.Base) && uint64(slot) < uint64(s.Base)+uint64(s.Count)
}
