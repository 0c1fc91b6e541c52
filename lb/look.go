package lb

import (
	"net/netip"
	"slices"
)

// look is a service as it was when its wish was noted.
type look struct {
	svc    *Service
	slices []*EndpointSlice
	// plans is kept unless all services are looked at, which would take much memory.
	plans []portPlan
}

// wishes notes what services ask for, before anything is programmed: who has what
// must not depend on the order of the names. It gives the names, and after them those
// of services that win or lose something by it.
func (l *Loop) wishes(names []ServiceName, at place, full bool) ([]ServiceName, map[ServiceName]look) {
	looks := make(map[ServiceName]look, len(names))
	for next := names; ; names = append(names, next...) {
		for _, name := range next {
			looks[name] = l.look(name, at, full)
		}
		next = nil
		for name := range l.r.claims.changed {
			if _, looked := looks[name]; !looked {
				next = append(next, name)
			}
		}
		if len(next) == 0 {
			break
		}
		slices.SortFunc(next, ServiceName.compare)
	}
	clear(l.r.claims.changed)
	l.r.noteTroubles(names)
	return names, looks
}

func (l *Loop) look(name ServiceName, at place, full bool) look {
	svc, sls := l.o.Store.get(name)
	l.checks.update(name, svc, sls, at)
	delete(l.ranged, name)
	if svc == nil {
		l.r.dropWish(name)
		return look{}
	}
	if len(svc.SourceRanges) > 0 {
		l.ranged[name] = true
	}
	plans := planService(svc, sls, at)
	l.r.setWish(svc, plans)
	if full {
		plans = nil
	}
	return look{svc, sls, plans}
}

// program makes the maps hold what a service is granted.
func (l *Loop) program(name ServiceName, looks map[ServiceName]look, at place) error {
	k, looked := looks[name]
	if !looked {
		k = l.look(name, at, false)
	}
	if k.svc == nil {
		return l.r.reconcile(name, nil)
	}
	if k.plans == nil {
		k.plans = planService(k.svc, k.slices, at)
	}
	return l.r.reconcile(name, l.r.granted(name, k.plans))
}

// place says where this node is, and adds the services that a change of it bears on:
// those with source ranges when the node's addresses change, those with external
// addresses when these come to be, or cease to be, in a service CIDR.
func (l *Loop) place(around surroundings, todo *changes) place {
	at := place{node: l.o.NodeName, addrs: outsideAddrs(around.addrs), cidrs: around.cidrs}
	if around.node != nil {
		at.zone = around.node.Zone
	}
	if at.cidrs == nil {
		at.cidrs = l.r.cidrs // an earlier daemon's: nobody knows better yet
	}
	if !slices.Equal(l.addrs, at.addrs) {
		for name := range l.ranged {
			todo.service(name)
		}
		l.addrs = at.addrs
	}
	if around.addrs != nil && (todo.addrs || !l.isSynced) {
		l.r.setTakes(l.o.NodePorts.Choose(around.addrs, around.node))
	}
	if !slices.Equal(l.cidrs, at.cidrs) {
		for a, names := range l.r.outer {
			if inAny(l.cidrs, a) == inAny(at.cidrs, a) {
				continue
			}
			for _, name := range names {
				todo.service(name)
			}
		}
		l.cidrs = slices.Clone(at.cidrs)
	}
	return at
}

func inAny(ranges []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}
