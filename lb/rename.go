package lb

import (
	"slices"

	"shunt/maps"
)

// A service port may get another name while its addresses and endpoints stay. It keeps its
// id and its records, by which flows, connections and session affinity know it: they go on.

// renamed returns the port that a plan continues under another name: one of the service, of
// the same protocol and family, that no plan is for, and has a frontend that the plan wants.
func (r *reconciler) renamed(all []*port, plans []portPlan, want portPlan) *port {
	for _, p := range all {
		same := p.key.protocol == want.key.protocol && p.key.family == want.key.family
		planned := slices.ContainsFunc(plans, func(w portPlan) bool { return w.key == p.key })
		if p.id != 0 && same && !planned && slices.ContainsFunc(want.frontends, func(f frontendPlan) bool { return r.leadsTo(p, f.key) }) {
			return p
		}
	}
	return nil
}

// leadsTo says whether the maps have a frontend of the port, which may not be known to be
// its own after a start.
func (r *reconciler) leadsTo(p *port, k maps.FrontendKey) bool {
	v, adopted := r.orphans[k]
	return p.frontend(k) >= 0 || adopted && v.Id == p.id
}

// rename returns a port the name of its plan.
func (r *reconciler) rename(p *port, want portPlan) error {
	if p.key == want.key {
		return nil
	}
	if err := r.tables.SetName(p.id, want.key.name()); err != nil {
		return err
	}
	r.writes.Names++
	p.key = want.key
	return nil
}
