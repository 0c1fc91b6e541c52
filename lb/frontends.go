package lb

import (
	"fmt"
	gomaps "maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"shunt/maps"
)

// claims are services that want a frontend which another one has, by frontend:
// when it becomes free, they are looked at again.
type claims map[maps.FrontendKey]map[ServiceName]bool

// add notes a claim and says whether it is a new one.
func (c claims) add(k maps.FrontendKey, name ServiceName) bool {
	if c[k] == nil {
		c[k] = map[ServiceName]bool{}
	}
	known := c[k][name]
	c[k][name] = true
	return !known
}

// claimed gives those of the frontends that the port may have.
func (r *reconciler) claimed(p *port, all []frontendPlan) []frontendPlan {
	mine := make([]frontendPlan, 0, len(all))
	for _, f := range all {
		if r.claim(p, f.key) {
			mine = append(mine, f)
		}
	}
	return mine
}

// setFrontends adds and changes the entries that are the port's. Each is one
// update of one hash element: it leads to the old ranges or to the new.
func (r *reconciler) setFrontends(p *port, want portPlan, mine []frontendPlan, inCluster, inLocal maps.SlotRange) error {
	elsewhere := len(want.inSet(maps.ClusterSet)) > 0
	for _, f := range mine {
		value := frontendValue(p.id, want.affinity, f, inCluster, inLocal, elsewhere)
		if held, there := r.held(p, f.key); there && held == value {
			r.own(p, f.key, value)
			continue
		}
		if err := r.tables.SetFrontend(f.key, value); err != nil {
			return fmt.Errorf("service %s: %w", p.key.service, err)
		}
		r.writes.Frontends++
		if p.frontend(f.key) < 0 {
			r.stale.UDPFrontends = r.stale.UDPFrontends || p.key.protocol == UDP
		}
		r.own(p, f.key, value)
	}
	return nil
}

// held gives what the map holds for a frontend that is the port's or nobody's.
func (r *reconciler) held(p *port, k maps.FrontendKey) (maps.Service, bool) {
	if i := p.frontend(k); i >= 0 {
		return p.frontends[i].value, true
	}
	v, adopted := r.orphans[k]
	return v, adopted
}

// own notes that the map holds the port's value for a frontend. Whoever had it
// before was overwritten, in one step; its other frontends keep what they lead to.
func (r *reconciler) own(p *port, k maps.FrontendKey, v maps.Service) {
	if i := p.frontend(k); i >= 0 {
		p.frontends[i].value = v
		return
	}
	_, adopted := r.orphans[k]
	delete(r.orphans, k)
	owner := r.owners[k]
	if owner == nil && !adopted {
		r.count(k, 1)
	}
	if owner != nil {
		r.stale.UDPFlows = r.stale.UDPFlows || owner.key.protocol == UDP
		owner.frontends = slices.DeleteFunc(owner.frontends, func(f frontend) bool { return f.key == k })
		if owner.key.service != p.key.service { // else reconcile comes to it
			r.claims.add(k, owner.key.service)
			r.freeRanges(owner)
			r.log.Warn("frontend goes to the older service",
				zap.Stringer("service", owner.key.service), zap.Stringer("frontend", k),
				zap.Stringer("owner", p.key.service))
		}
	}
	p.frontends = append(p.frontends, frontend{k, v})
	r.owners[k] = p
}

func frontendValue(id, affinity uint32, f frontendPlan, inCluster, inLocal maps.SlotRange, elsewhere bool) maps.Service {
	v := maps.Service{Id: id, Kind: uint8(f.kind)}
	if f.kind == maps.UndefinedPort {
		return v
	}
	v.AffinitySeconds = affinity
	v.Inside, v.Outside = inCluster, inCluster
	if f.insideLocal {
		v.Inside = inLocal
		v.Flags |= maps.InsideLocal
	}
	if f.outsideLocal {
		v.Outside = inLocal
		v.Flags |= maps.OutsideLocal
	}
	if elsewhere {
		v.Flags |= maps.Elsewhere
	}
	if f.ranged {
		v.Flags |= maps.SourceRanges
	}
	return v
}

// count counts an entry of map services in or out.
func (r *reconciler) count(k maps.FrontendKey, n int) {
	if k.Port != 0 {
		r.entries += n
	}
}

// claim says whether the port may have a frontend: unless an older service has
// it, or another port of this service that still wants it. Order of arrival does
// not matter, so that all nodes agree.
func (r *reconciler) claim(p *port, k maps.FrontendKey) bool {
	owner := r.owners[k]
	switch {
	case owner == nil || owner == p:
		return true
	case owner.key.service == p.key.service:
		return !owner.wants(k)
	case older(p, owner):
		return true
	}
	if r.claims.add(k, p.key.service) {
		r.log.Warn("frontend is another service's: not programmed for this one",
			zap.Stringer("service", p.key.service), zap.Stringer("frontend", k),
			zap.Stringer("owner", owner.key.service))
	}
	return false
}

// setCreated notes the age of a port's service. It may have become another: the
// service was made anew under the same name, or the port was adopted, and its
// age not known until now. Then who has its frontends is decided again.
func (r *reconciler) setCreated(p *port, created time.Time) {
	if p.created.Equal(created) {
		return
	}
	p.created = created
	for _, f := range p.frontends {
		r.contest(f.key)
	}
}

// contest lets the services that claim a frontend try again at the end of this
// step.
func (r *reconciler) contest(k maps.FrontendKey) {
	if r.claims[k] != nil {
		r.contested = append(r.contested, k)
	}
}

// older says which of two services has a frontend that both claim: the one that
// was created first, by name where that is equal or unknown.
func older(a, b *port) bool {
	if !a.created.Equal(b.created) {
		return a.created.Before(b.created)
	}
	return a.key.service.String() < b.key.service.String()
}

// deleteFrontends removes what the plan does not want.
func (r *reconciler) deleteFrontends(p *port, want portPlan) error {
	for i := 0; i < len(p.frontends); {
		k := p.frontends[i].key
		if slices.ContainsFunc(want.frontends, func(f frontendPlan) bool { return f.key == k }) {
			i++
			continue
		}
		if err := r.tables.DeleteFrontend(k); err != nil {
			return fmt.Errorf("service %s: %w", p.key.service, err)
		}
		r.writes.Frontends++
		r.stale.UDPFlows = r.stale.UDPFlows || p.key.protocol == UDP
		delete(r.owners, k)
		r.contest(k)
		r.count(k, -1)
		p.frontends = slices.Delete(p.frontends, i, i+1)
	}
	return nil
}

// heirs gives the services that claim frontends of which the owner is gone, or
// may not be the oldest any more, and forgets their claims. That somebody else
// has such a frontend by now says nothing: it may have come first by chance.
func (r *reconciler) heirs() []ServiceName {
	names := map[ServiceName]bool{}
	for _, k := range r.contested {
		for name := range r.claims[k] {
			names[name] = true
		}
		delete(r.claims, k)
	}
	r.contested = nil
	return slices.Collect(gomaps.Keys(names))
}
