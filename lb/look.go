// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"slices"

	"shunt/maps"
)

// look is a service as it was when its wish was recorded.
type look struct {
	svc    *Service
	slices []*EndpointSlice
	// plans is not kept when all services are looked at: it would take much memory.
	plans []portPlan
	// tried: it was programmed, with result err.
	tried bool
	err   error
}

// wishes records what services ask for, before anything is programmed: the owner of a frontend must
// not depend on the order of names. It returns the names, and those of services that win or lose a
// frontend by that: first those that lose room, last those that get room.
func (l *Loop) wishes(names []ServiceName, at place, full bool) ([]ServiceName, map[ServiceName]*look) {
	looks := make(map[ServiceName]*look, len(names))
	for next := names; ; names = append(names, next...) {
		for _, name := range next {
			looks[name] = l.look(name, at, full)
		}
		next = nil
		touched := l.reserve() // services affected by healthCheckNodePorts that are added or removed
		for name := range touched {
			if _, looked := looks[name]; looked {
				looks[name] = l.look(name, at, full)
			}
		}
		for name := range l.r.claims.changed {
			if _, looked := looks[name]; !looked {
				next = append(next, name)
			}
		}
		for name := range touched {
			if _, looked := looks[name]; !looked && !l.r.claims.changed[name] {
				next = append(next, name)
			}
		}
		if len(next) == 0 {
			break
		}
		slices.SortFunc(next, ServiceName.compare)
	}
	clear(l.r.claims.changed)
	for _, name := range names {
		if w := l.r.wishes[name]; w != nil && w.uncounted {
			l.r.ledger.update(w)
		}
	}
	if limit := limitOf(l.o.Tables.Sizes(), len(at.cidrs)+exceptionRoom(l.o.Tables.Sizes())); limit != l.r.ledger.limit {
		l.r.ledger.limit, l.r.ledger.changed = limit, true
	}
	lost, got := l.r.ledger.give(l.r.wishes)
	for _, name := range slices.Concat(lost, got) {
		if _, looked := looks[name]; !looked {
			looks[name] = l.look(name, at, full)
			names = append(names, name)
		}
	}
	l.r.noteClaims(names)
	if len(lost) > 0 { // removals make room for additions
		goes := map[ServiceName]bool{}
		for _, name := range lost {
			goes[name] = true
		}
		names = append(lost, slices.DeleteFunc(names, func(n ServiceName) bool { return goes[n] })...)
	}
	return names, looks
}

func (l *Loop) look(name ServiceName, at place, full bool) *look {
	svc, sls := l.o.Store.get(name)
	var ports portIndex
	if svc != nil {
		ports = newPortIndex(sls, len(svc.Ports))
	}
	l.checks.update(name, svc, &ports, at)
	l.noteOwn(name, svc, at)
	l.rangedChanged = l.rangedChanged || l.ranged[name]
	delete(l.ranged, name)
	delete(l.refused, name)
	if svc == nil {
		l.r.dropWish(name)
		return &look{}
	}
	if len(svc.SourceRanges) > 0 {
		l.ranged[name], l.rangedChanged = true, true
	}
	at.reserved = l.reserved // which may have changed in this reconcile
	plans := planPorts(svc, &ports, at)
	if slices.ContainsFunc(plans, func(p portPlan) bool { return len(p.refused) > 0 }) {
		l.refused[name] = true
	}
	l.r.setWish(svc, plans)
	if full {
		plans = nil
	}
	return &look{svc: svc, slices: sls, plans: plans}
}

// programAll programs the changed services and those that the changes affect. It returns the
// errors, and records what has to be tried again.
func (l *Loop) programAll(todo changes, at place, report *Report) (errs []error) {
	first := !l.isSynced
	names, looks := l.wishes(l.names(todo, report.Full), at, report.Full)
	unbind := l.bind()
	var full []ServiceName
	for i := 0; i < len(names); i++ {
		k := l.program(names[i], looks, at)
		if k.err != nil && onlyFull(k.err) {
			full = append(full, names[i])
		}
		if i == len(names)-1 {
			names = append(names, l.r.takeStripped()...)
		}
	}
	for _, name := range full { // services after them may have made room
		l.program(name, looks, at)
	}
	for _, name := range names {
		k := looks[name]
		if !k.tried {
			continue // its outcome is recorded already
		}
		k.tried = false
		change := todo.of(name) // zero for a service that only won or lost something
		if first {
			change.triggers = nil // they are from before this daemon started
		}
		if k.err != nil {
			errs = append(errs, k.err)
			report.Failed++
		}
		report.Programmed = append(report.Programmed, l.result(object{service: name}, change, k.err)...)
	}
	report.Services = len(names)
	if len(errs) == 0 {
		unbind()
	} // else a frontend may still have its earlier value
	return errs
}

// program makes the maps hold what a service is granted.
func (l *Loop) program(name ServiceName, looks map[ServiceName]*look, at place) *look {
	k := looks[name]
	if k == nil {
		k = l.look(name, at, false)
		looks[name] = k
	}
	k.tried = true
	if k.svc == nil {
		k.err = l.r.reconcile(name, nil, nil)
		l.r.except(name, nil)
		if k.err == nil {
			l.faults.forget(object{service: name})
		}
		return k
	}
	if k.svc.NotServed {
		l.r.except(name, k.svc.ClusterIPs)
		l.r.exceptNow(name) // before its entries go: else its addresses would be refused in between
		k.err = l.r.reconcile(name, nil, nil)
		return k
	}
	plans := k.plans
	if plans == nil {
		at.reserved = l.reserved
		plans = planService(k.svc, k.slices, at)
	}
	k.err = l.r.reconcile(name, l.r.granted(name, plans), k.slices)
	l.r.except(name, l.r.unserved(k.svc))
	if k.svc.HealthCheckNodePort != 0 {
		for _, family := range []Family{IPv4, IPv6} {
			l.checks.programmed(servedBy{name, family}, k.err == nil && l.r.servesOutside(plans, family))
		}
	}
	return k
}

// place returns what planning needs to know of the node. It adds to todo the services that a change
// of it affects: those with source ranges when the node's addresses change, those with a
// load-balancer or external IP that is in a service CIDR now or was before, and those that reserve
// returns.
func (l *Loop) place(around surroundings, todo *changes) place {
	at := place{node: l.o.NodeName, addrs: outsideAddrs(around.addrs), cidrs: around.cidrs, maxFrontends: l.o.MaxFrontends}
	if around.node != nil {
		at.zone = around.node.Zone
	}
	if at.cidrs == nil {
		at.cidrs = slices.Clone(l.r.cidrs) // those in adopted maps, until the watcher reports some
	}
	if !slices.Equal(l.around.addrs, around.addrs) {
		l.addrsVersion++
	}
	l.around = around
	if !slices.Equal(l.addrs, at.addrs) {
		for name := range l.ranged {
			todo.service(name)
		}
		l.setAddrs(at.addrs, todo)
	}
	if around.addrs != nil && (todo.addrs || !l.isSynced) {
		l.r.setTakes(l.taking(around))
		l.addrsVersion++
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
	for name := range l.reserve() {
		todo.service(name)
	}
	return at
}

// taking returns the addresses of the node that take node ports, as many as map addrs has room for.
// Cluster IPs that a device has take none.
func (l *Loop) taking(around surroundings) map[netip.Addr]uint32 {
	return atMost(maps.NodeAddrRoom(), l.o.NodePorts.Choose(l.withoutOwn(around.addrs), around.node, l.r.nodeAddrs))
}

func inAny(ranges []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}
