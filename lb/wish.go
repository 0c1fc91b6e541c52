// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"shunt/maps"
)

// rank orders the kinds of frontends. Where two services claim one frontend, and where a map is too
// small for all, the lower rank wins.
type rank uint8

const (
	rankClusterIP rank = iota
	rankNodePort
	rankLoadBalancerIP
	rankExternalIP
	ranks = iota
)

// levels are the ranks of what services ask for within their share of the maps, followed by the
// ranks of what is beyond a share.
const levels = 2 * ranks

func rankOf(k maps.FrontendKind) rank {
	switch k {
	case maps.NodePort:
		return rankNodePort
	case maps.LoadBalancerIP:
		return rankLoadBalancerIP
	case maps.ExternalIP:
		return rankExternalIP
	}
	return rankClusterIP
}

// wish is what one Service asks for, and what of it is granted. The outcome depends on the wishes
// of all services and never on the order in which they arrived: so all nodes agree, and a new
// daemon agrees with the previous one.
type wish struct {
	name    ServiceName
	created time.Time
	// outer are the service's load-balancer and external IPs.
	outer []netip.Addr
	ports []*portWish
	// total is the room that its won frontends need, up to each level.
	total [levels]room
	// uncounted: total is out of date.
	uncounted bool
	// notServed: another proxy serves the service. The wish only keeps others from getting its
	// addresses.
	notServed bool
}

// portWish is what a service port of one family asks for.
type portWish struct {
	of        *wish
	index     int // in the service
	key       portKey
	frontends []frontendWish // sorted by rank
	refused   []refusal
	cut       int
	need      portNeed
	has       portHas // used while room is granted
}

// frontendWish is one frontend that a service port asks for.
type frontendWish struct {
	key  maps.FrontendKey
	kind maps.FrontendKind
	// Which sets it uses, and whether source ranges restrict it.
	usesCluster, usesLocal, ranged bool
	// won: no better claim to the frontend is known. fits: the maps have room for it; fitted: fits
	// before room was last granted. lacks is the resource that has too little room.
	won, fits, fitted bool
	lacks             resource
	// level is its rank, plus ranks where it is beyond the share of the service.
	level uint8
}

func (f *frontendWish) granted() bool { return f.won && f.fits }

func newFrontendWish(f frontendPlan) frontendWish {
	return frontendWish{key: f.key, kind: f.kind, usesCluster: !f.insideLocal || !f.outsideLocal,
		usesLocal: f.insideLocal || f.outsideLocal, ranged: f.ranged, fits: true,
		level: uint8(rankOf(f.kind))}
}

// as reports whether a plan asks for the same frontend in the same way.
func (f *frontendWish) as(o frontendPlan) bool {
	n := newFrontendWish(o)
	return f.key == n.key && f.kind == n.kind && f.usesCluster == n.usesCluster && f.usesLocal == n.usesLocal &&
		f.ranged == n.ranged
}

// compare orders wishes inside a rank: the service that was created first comes first. The name
// decides between equal times. An unknown time (zero) counts as the earliest.
func (w *wish) compare(o *wish) int {
	return cmp.Or(w.created.Compare(o.created), w.name.compare(o.name))
}

// setWish replaces what a service asks for. It records in claims.changed which services win or lose
// a frontend by that.
func (r *reconciler) setWish(svc *Service, plans []portPlan) {
	if old := r.wishes[svc.Name]; old != nil && old.same(svc, plans) {
		for i := range plans {
			p, need := old.ports[i], needOf(&plans[i])
			old.uncounted = old.uncounted || p.need != need
			p.refused, p.cut, p.need = plans[i].refused, plans[i].cut, need
		}
		return
	}
	r.dropWish(svc.Name)
	w := &wish{name: svc.Name, created: svc.Created, outer: outerAddrs(svc), uncounted: true, notServed: svc.NotServed}
	for i, p := range plans {
		port := &portWish{of: w, index: i, key: p.key, frontends: make([]frontendWish, len(p.frontends)),
			refused: p.refused, cut: p.cut, need: needOf(&p)}
		for j, f := range p.frontends {
			port.frontends[j] = newFrontendWish(f)
		}
		w.ports = append(w.ports, port)
	}
	r.wishes[w.name] = w
	for _, a := range w.outer {
		r.outer[a] = append(r.outer[a], w.name)
	}
	w.eachClaim(r.claims.add)
	r.ledger.enter(w)
}

// outerAddrs returns the load-balancer and external IPs of a service: those that are not from
// service CIDRs.
func outerAddrs(svc *Service) []netip.Addr {
	return slices.Concat(svc.LoadBalancerIPs, svc.ExternalIPs)
}

// dropWish removes what a service asked for.
func (r *reconciler) dropWish(name ServiceName) {
	w := r.wishes[name]
	if w == nil {
		return
	}
	delete(r.wishes, name)
	r.ledger.leave(w)
	w.eachClaim(r.claims.remove)
	for _, a := range w.outer {
		rest := slices.DeleteFunc(r.outer[a], func(n ServiceName) bool { return n == name })
		if r.outer[a] = rest; len(rest) == 0 {
			delete(r.outer, a)
		}
	}
}

func (w *wish) eachClaim(do func(claim)) {
	for _, p := range w.ports {
		for i := range p.frontends {
			do(claim{p, &p.frontends[i]})
		}
	}
}

// same reports whether a service still asks for the same frontends.
func (w *wish) same(svc *Service, plans []portPlan) bool {
	if w.notServed != svc.NotServed || !w.created.Equal(svc.Created) || len(w.ports) != len(plans) ||
		!slices.Equal(w.outer, outerAddrs(svc)) {
		return false
	}
	for i, p := range plans {
		if w.ports[i].key != p.key || !slices.EqualFunc(w.ports[i].frontends, p.frontends,
			func(a frontendWish, b frontendPlan) bool { return a.as(b) }) {
			return false
		}
	}
	return true
}

// granted returns a service's plans, without the frontends that are not granted. A port without a
// frontend has nothing in the maps.
func (r *reconciler) granted(name ServiceName, plans []portPlan) []portPlan {
	w := r.wishes[name]
	if w == nil {
		return nil
	}
	if w.all(plans) {
		return plans
	}
	kept := make([]portPlan, 0, len(plans))
	for i, plan := range plans {
		if i >= len(w.ports) || w.ports[i].key != plan.key {
			continue // setWish does not know the port yet
		}
		if plan.frontends = w.ports[i].granted(plan.frontends); len(plan.frontends) == 0 {
			continue
		}
		if !slices.ContainsFunc(plan.frontends, func(f frontendPlan) bool { return f.ranged }) {
			plan.sources = nil
		}
		kept = append(kept, plan)
	}
	return kept
}

// all reports whether a service is granted all of its plans.
func (w *wish) all(plans []portPlan) bool {
	for i := range plans {
		p := &plans[i]
		if p.cut > 0 || i >= len(w.ports) || w.ports[i].key != p.key || len(w.ports[i].frontends) != len(p.frontends) {
			return false
		}
		for j := range p.frontends {
			if f := &w.ports[i].frontends[j]; f.key != p.frontends[j].key || !f.granted() {
				return false
			}
		}
	}
	return true
}

// granted returns the granted ones of the frontends, in the order of the wish.
func (p *portWish) granted(all []frontendPlan) []frontendPlan {
	refused := func(i int) bool {
		return i >= len(p.frontends) || p.frontends[i].key != all[i].key || !p.frontends[i].granted()
	}
	var kept []frontendPlan
	for i := range all {
		switch {
		case refused(i) && kept == nil:
			kept = slices.Clone(all[:i]) // not nil, even if empty
		case !refused(i) && kept != nil:
			kept = append(kept, all[i])
		}
	}
	if kept == nil {
		return all
	}
	return kept
}
