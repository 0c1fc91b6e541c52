// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"slices"

	"shunt/maps"
)

// port is what the maps hold for a portKey: written only after the write to the
// maps it stands for.
type port struct {
	key portKey
	// id is 0 until the name is set, and for a cluster IP as a whole.
	id        uint32
	frontends []frontend
	// index finds the frontends by key, where there are many; nil: it has to be made.
	index map[maps.FrontendKey]int
	// paired: a plan continues it, while plans are paired with ports.
	paired bool
	// wanted is what the port's plan wants while its service is reconciled.
	wanted []frontendPlan
	// ranges that frontends name, or did until a change that failed half-way.
	ranges []slotRange
	// backends, sorted by address.
	backends []backend
	// sources are the ranges that map sources has for id, sorted.
	sources []netip.Prefix

	noLocalInternal, noLocalExternal bool
}

type frontend struct {
	key   maps.FrontendKey
	value maps.Service
}

type slotRange struct {
	block
	ids []uint32
}

type backend struct {
	addr  netip.AddrPort
	id    uint32
	flags uint8
}

// manyFrontends is from how many on frontends are found by an index: one Service may
// have thousands, and others wait while it is programmed.
const manyFrontends = 64

// frontend returns the place of a frontend, -1 where the port does not have it.
func (p *port) frontend(k maps.FrontendKey) int {
	if len(p.frontends) < manyFrontends {
		return slices.IndexFunc(p.frontends, func(f frontend) bool { return f.key == k })
	}
	if p.index == nil {
		p.index = make(map[maps.FrontendKey]int, len(p.frontends))
		for i := range p.frontends {
			p.index[p.frontends[i].key] = i
		}
	}
	if i, there := p.index[k]; there {
		return i
	}
	return -1
}

func (p *port) addFrontend(f frontend) {
	p.frontends = append(p.frontends, f)
	if p.index != nil {
		p.index[f.key] = len(p.frontends) - 1
	}
}

// removeFrontend removes a frontend by its place, which another one takes.
func (p *port) removeFrontend(i int) {
	last := len(p.frontends) - 1
	if p.index != nil {
		p.index[p.frontends[last].key] = i
		delete(p.index, p.frontends[i].key) // also where it is the last
	}
	p.frontends[i] = p.frontends[last]
	p.frontends = p.frontends[:last]
}

// frontendsIn returns a function that reports whether a frontend is in a list.
func frontendsIn(list []frontendPlan) func(maps.FrontendKey) bool {
	if len(list) < manyFrontends {
		return func(k maps.FrontendKey) bool {
			return slices.ContainsFunc(list, func(f frontendPlan) bool { return f.key == k })
		}
	}
	all := make(map[maps.FrontendKey]bool, len(list))
	for _, f := range list {
		all[f.key] = true
	}
	return func(k maps.FrontendKey) bool { return all[k] }
}

// portsIn returns a function that finds a service's port by its key, nil where there is
// none.
func portsIn(list []*port) func(portKey) *port {
	if len(list) < manyFrontends {
		return func(k portKey) *port {
			if i := slices.IndexFunc(list, func(p *port) bool { return p.key == k }); i >= 0 {
				return list[i]
			}
			return nil
		}
	}
	all := make(map[portKey]*port, len(list))
	for _, p := range list {
		all[p.key] = p
	}
	return func(k portKey) *port { return all[k] }
}

// keeps says whether the port has a frontend that it does not want any more,
// but another port does that could not take it over yet.
func (p *port) keeps(waiting []frontendPlan) bool {
	if len(waiting) == 0 {
		return false
	}
	wants := frontendsIn(p.wanted)
	return slices.ContainsFunc(waiting, func(f frontendPlan) bool {
		return p.frontend(f.key) >= 0 && !wants(f.key)
	})
}

func (p *port) backend(a netip.AddrPort) (int, bool) {
	return slices.BinarySearchFunc(p.backends, a, func(b backend, a netip.AddrPort) int {
		return b.addr.Compare(a)
	})
}

// rangeOf finds a range that holds exactly these ids.
func (p *port) rangeOf(ids []uint32) (maps.SlotRange, bool) {
	for _, r := range p.ranges {
		if slices.Equal(r.ids, ids) {
			return maps.SlotRange{Base: r.base, Count: uint32(len(ids))}, true
		}
	}
	return maps.SlotRange{}, false
}

// names says whether a frontend of the port leads to the range.
func (p *port) names(r slotRange) bool {
	return slices.ContainsFunc(p.frontends, func(f frontend) bool {
		return f.value.Inside.Count > 0 && f.value.Inside.Base == r.base ||
			f.value.Outside.Count > 0 && f.value.Outside.Base == r.base
	})
}

// namedIDs returns the records that the port's ranges have.
func (p *port) namedIDs() map[uint32]bool {
	ids := map[uint32]bool{}
	for _, r := range p.ranges {
		for _, id := range r.ids {
			ids[id] = true
		}
	}
	return ids
}

// gone: nothing of the port is in the maps any more.
func (p *port) gone() bool {
	return p.id == 0 && len(p.frontends) == 0
}

// usage is how much is in use of what can be full.
type usage struct {
	services, records, slots uint32
	entries, sources         int
}

func (r *reconciler) room() usage {
	return usage{r.services.used, r.records.used, r.slots.used, r.entries, r.sources + len(r.cidrs)}
}

// moreThan reports whether anything has more room than before.
func (u usage) moreThan(before usage) bool {
	return u.services < before.services || u.records < before.records || u.slots < before.slots ||
		u.entries < before.entries || u.sources < before.sources
}

// servesOutside reports whether the maps have what clients from outside use of a
// service: of each port of a family that has node ports or load-balancer IPs, at
// least one.
func (r *reconciler) servesOutside(plans []portPlan, family Family) bool {
	for _, plan := range plans {
		if plan.key.family != family {
			continue
		}
		asked, has := false, false
		for _, f := range plan.frontends {
			if f.kind != maps.NodePort && f.kind != maps.LoadBalancerIP {
				continue
			}
			asked = true
			owner := r.owners[f.key]
			has = has || owner != nil && owner.key == plan.key
		}
		if asked && !has {
			return false
		}
	}
	return true
}
