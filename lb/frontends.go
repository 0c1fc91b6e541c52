package lb

import (
	"fmt"
	"slices"

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

// setFrontends adds and changes the entries that the plan wants. Each is one
// update of one hash element: it leads to the old ranges or to the new.
func (r *reconciler) setFrontends(p *port, want portPlan, inCluster, inLocal maps.SlotRange) error {
	elsewhere := len(want.inSet(maps.ClusterSet)) > 0
	for _, f := range want.frontends {
		if !r.claim(p, f.key) {
			continue
		}
		value := frontendValue(p.id, want.affinity, f, inCluster, inLocal, elsewhere)
		i := p.frontend(f.key)
		if i >= 0 && p.frontends[i].value == value {
			continue
		}
		if err := r.tables.SetFrontend(f.key, value); err != nil {
			return fmt.Errorf("service %s: %w", p.key.service, err)
		}
		r.writes.Frontends++
		if i >= 0 {
			p.frontends[i].value = value
			continue
		}
		p.frontends = append(p.frontends, frontend{f.key, value})
		r.stale.UDPFrontends = r.stale.UDPFrontends || p.key.protocol == UDP
	}
	return nil
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
	return v
}

// claim makes the port the owner of a frontend, unless an older service is.
// Order of arrival does not matter, so that all nodes agree.
func (r *reconciler) claim(p *port, k maps.FrontendKey) bool {
	owner := r.owners[k]
	if owner == p {
		return true
	}
	if owner != nil && !older(p, owner) {
		if r.claims.add(k, p.key.service) {
			r.log.Warn("frontend is another service's: not programmed for this one",
				zap.Stringer("service", p.key.service), zap.Stringer("frontend", k),
				zap.Stringer("owner", owner.key.service))
		}
		return false
	}
	if owner != nil {
		i := owner.frontend(k)
		if i >= 0 { // the entry itself is overwritten in one step
			owner.frontends = slices.Delete(owner.frontends, i, i+1)
		}
		r.claims.add(k, owner.key.service)
		r.log.Warn("frontend goes to the older service",
			zap.Stringer("service", owner.key.service), zap.Stringer("frontend", k),
			zap.Stringer("owner", p.key.service))
	}
	if v, adopted := r.orphans[k]; adopted {
		delete(r.orphans, k)
		p.frontends = append(p.frontends, frontend{k, v})
	}
	r.owners[k] = p
	return true
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
		if r.owners[k] == p {
			delete(r.owners, k)
		}
		p.frontends = slices.Delete(p.frontends, i, i+1)
	}
	return nil
}

// heirs gives the services that claim frontends which nobody has any more, and
// forgets their claims.
func (r *reconciler) heirs() []ServiceName {
	var names []ServiceName
	for k, claimants := range r.claims {
		if r.owners[k] != nil {
			continue
		}
		for name := range claimants {
			names = append(names, name)
		}
		delete(r.claims, k)
	}
	return names
}
