// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"slices"

	"shunt/maps"
)

// port is what the maps hold for a portKey. It is changed only after the write to the maps
// succeeded.
type servicePort struct {
	key portKey
	// id is 0 until the name is written, and always for a cluster IP as a whole.
	id        uint32
	frontends []frontend
	// index finds a frontend by its key, where there are many; nil until it is needed.
	index map[maps.FrontendKey]int
	// paired is used while plans are paired with ports: a plan continues this port.
	paired bool
	// wanted are the frontends of the plan while the service is reconciled.
	wanted []frontendPlan
	// ranges are the slot ranges that frontends name, or named until a change that failed half-way.
	ranges []slotRange
	// backends are sorted by address.
	backends []backend
	// sources are the source ranges in the map for id, sorted.
	sources []netip.Prefix

	noLocalInternal, noLocalExternal bool
}

type frontend struct {
	key   maps.FrontendKey
	value maps.Frontend
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

// manyFrontends is the number of frontends from which an index finds them: one Service may have
// thousands, and other Services wait while it is programmed.
const manyFrontends = 64

// frontend returns the index of a frontend in frontends, -1 where the port does not have it.
func (p *servicePort) frontend(k maps.FrontendKey) int {
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

func (p *servicePort) addFrontend(f frontend) {
	p.frontends = append(p.frontends, f)
	if p.index != nil {
		p.index[f.key] = len(p.frontends) - 1
	}
}

// removeFrontend removes the frontend at an index, and moves the last one there.
func (p *servicePort) removeFrontend(i int) {
	last := len(p.frontends) - 1
	if p.index != nil {
		p.index[p.frontends[last].key] = i
		delete(p.index, p.frontends[i].key) // also right where i is the last
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

// portsIn returns a function that finds a port by its key; it returns nil where there is none.
func portsIn(list []*servicePort) func(portKey) *servicePort {
	if len(list) < manyFrontends {
		return func(k portKey) *servicePort {
			if i := slices.IndexFunc(list, func(p *servicePort) bool { return p.key == k }); i >= 0 {
				return list[i]
			}
			return nil
		}
	}
	all := make(map[portKey]*servicePort, len(list))
	for _, p := range list {
		all[p.key] = p
	}
	return func(k portKey) *servicePort { return all[k] }
}

// keeps reports whether the port has a frontend that it no longer wants, and that is in waiting:
// another port of the service could not take it yet.
func (p *servicePort) keeps(waiting []frontendPlan) bool {
	if len(waiting) == 0 {
		return false
	}
	wants := frontendsIn(p.wanted)
	return slices.ContainsFunc(waiting, func(f frontendPlan) bool {
		return p.frontend(f.key) >= 0 && !wants(f.key)
	})
}

func (p *servicePort) backend(a netip.AddrPort) (int, bool) {
	return slices.BinarySearchFunc(p.backends, a, func(b backend, a netip.AddrPort) int {
		return b.addr.Compare(a)
	})
}

// rangeOf returns a slot range that holds exactly these ids.
func (p *servicePort) rangeOf(ids []uint32) (maps.SlotRange, bool) {
	for _, r := range p.ranges {
		if slices.Equal(r.ids, ids) {
			return maps.SlotRange{Base: r.base, Count: uint32(len(ids))}, true
		}
	}
	return maps.SlotRange{}, false
}

// names reports whether a frontend of the port uses the slot range.
func (p *servicePort) names(r slotRange) bool {
	return slices.ContainsFunc(p.frontends, func(f frontend) bool {
		return f.value.Inside.Count > 0 && f.value.Inside.Base == r.base ||
			f.value.Outside.Count > 0 && f.value.Outside.Base == r.base
	})
}

// namedIDs returns the ids of the backends in the port's slot ranges.
func (p *servicePort) namedIDs() map[uint32]bool {
	ids := map[uint32]bool{}
	for _, r := range p.ranges {
		for _, id := range r.ids {
			ids[id] = true
		}
	}
	return ids
}

// gone reports whether the maps have nothing of the port any more.
func (p *servicePort) gone() bool {
	return p.id == 0 && len(p.frontends) == 0
}

// usage is how much of each limited resource is in use.
type usage struct {
	services, records, slots uint32
	entries, sources         int
}

func (r *reconciler) room() usage {
	return usage{r.services.used, r.records.used, r.slots.used, r.entries,
		r.sources + len(r.cidrs) + len(r.excepted.held)}
}

// moreThan reports whether less of any resource is in use than before.
func (u usage) moreThan(before usage) bool {
	return u.services < before.services || u.records < before.records || u.slots < before.slots ||
		u.entries < before.entries || u.sources < before.sources
}

// servesOutside reports whether clients from outside reach a service by one family: of each of its
// ports that has node ports or load-balancer IPs, at least one such frontend is in the maps.
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
