// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"slices"

	"shunt/maps"
)

// A service port may get another name while its addresses and endpoints stay, and two ports may
// swap names. The port keeps its id and its backends: flows, connections and session affinity refer
// to them and continue.

// steps pairs a service's ports with their plans. A port without a plan is removed.
func (r *reconciler) steps(name ServiceName, plans []portPlan) []portStep {
	paired, goes := r.pair(r.ports[name], plans)
	steps := make([]portStep, 0, len(goes)+len(plans))
	for _, p := range goes {
		steps = append(steps, portStep{port: p, want: portPlan{key: p.key}, remove: true})
	}
	for i, want := range plans {
		p := paired[i]
		if p == nil {
			p = &servicePort{key: want.key}
			r.ports[name] = append(r.ports[name], p)
		}
		steps = append(steps, portStep{port: p, want: want})
	}
	return steps
}

// pair returns the port that each plan continues, nil for a new one, and the ports that no plan
// continues. A plan continues the port of its name that has a frontend it wants; else a port of
// another name that has one, with the same protocol and family; else the port of its name.
func (r *reconciler) pair(all []*servicePort, plans []portPlan) (paired, goes []*servicePort) {
	paired = make([]*servicePort, len(plans))
	portOf := portsIn(all)
	for _, continues := range []func(want *portPlan) *servicePort{
		func(want *portPlan) *servicePort {
			p := portOf(want.key)
			if p == nil || !slices.ContainsFunc(want.frontends, func(f frontendPlan) bool { return r.leadsTo(p, f.key) }) {
				return nil
			}
			return p
		},
		func(want *portPlan) *servicePort { return r.continued(all, want) },
		func(want *portPlan) *servicePort { return portOf(want.key) },
	} {
		for i := range plans {
			if paired[i] != nil {
				continue
			}
			if p := continues(&plans[i]); p != nil && !p.paired {
				paired[i], p.paired = p, true
			}
		}
	}
	for _, p := range all {
		if !p.paired {
			goes = append(goes, p)
		}
		p.paired = false
	}
	return paired, goes
}

// continued returns a port of the service that has a frontend which a plan wants and that no plan
// continues yet; nil where there is none.
func (r *reconciler) continued(all []*servicePort, want *portPlan) *servicePort {
	for _, f := range want.frontends {
		p := r.owners[f.key]
		if v, adopted := r.orphans[f.key]; adopted {
			if i := slices.IndexFunc(all, func(p *servicePort) bool { return p.id == v.Id }); i >= 0 {
				p = all[i]
			}
		}
		if p != nil && p.id != 0 && !p.paired && p.key.service == want.key.service &&
			p.key.protocol == want.key.protocol && p.key.family == want.key.family {
			return p
		}
	}
	return nil
}

// leadsTo reports whether the maps have a frontend of the port, be it only as an orphan after a
// start.
func (r *reconciler) leadsTo(p *servicePort, k maps.FrontendKey) bool {
	v, adopted := r.orphans[k]
	return p.frontend(k) >= 0 || adopted && v.Id == p.id
}

// rename changes the name of a port to that of its plan.
func (r *reconciler) rename(p *servicePort, want portPlan) error {
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
