// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"fmt"

	"shunt/maps"
)

// setFrontends adds and changes the port's entries in map services. Each write updates one hash
// element at once: programs see the old slot ranges or the new ones. full is the error for a full
// map; the other entries are written.
func (r *reconciler) setFrontends(p *servicePort, want portPlan, mine []frontendPlan, inCluster, inLocal maps.SlotRange) (full error) {
	elsewhere := len(want.inSet(maps.ClusterSet)) > 0
	for _, f := range mine {
		value := frontendValue(p.id, want.affinity, f, inCluster, inLocal, elsewhere)
		if held, there := r.held(p, f.key); there && held == value {
			r.own(p, f.key, value)
			continue
		}
		if err := r.tables.SetFrontend(f.key, value); err != nil {
			err = fmt.Errorf("service %s: %w", p.key.service, err)
			if !onlyFull(err) {
				return err
			}
			full = cmp.Or(full, err) // other entries exist already, and their update needs no room
			continue
		}
		r.writes.Frontends++
		if p.frontend(f.key) < 0 {
			r.stale.UDPFrontends = r.stale.UDPFrontends || p.key.protocol == UDP
		}
		r.own(p, f.key, value)
	}
	return full
}

// held returns what the map holds for a frontend of the port, or for an orphan.
func (r *reconciler) held(p *servicePort, k maps.FrontendKey) (maps.Frontend, bool) {
	if i := p.frontend(k); i >= 0 {
		return p.frontends[i].value, true
	}
	v, adopted := r.orphans[k]
	return v, adopted
}

// own records that the map holds the port's value for a frontend. The entry of an earlier owner was
// overwritten in one update; the other frontends of that owner keep what they refer to.
func (r *reconciler) own(p *servicePort, k maps.FrontendKey, v maps.Frontend) {
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
		if i := owner.frontend(k); i >= 0 {
			owner.removeFrontend(i)
		}
		if owner.key.service != p.key.service { // else reconcile retires the rest of it
			r.stripped = append(r.stripped, owner.key.service)
		}
	}
	p.addFrontend(frontend{k, v})
	r.owners[k] = p
}

func frontendValue(id, affinity uint32, f frontendPlan, inCluster, inLocal maps.SlotRange, elsewhere bool) maps.Frontend {
	v := maps.Frontend{Id: id, Kind: uint8(f.kind)}
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

// count adds n to the number of entries in map services.
func (r *reconciler) count(k maps.FrontendKey, n int) {
	if k.Port != 0 {
		r.entries += n
	}
}

// deleteFrontends deletes the entries that the plan does not want. keeps: an entry stays because
// another service has won its frontend and will overwrite it in one update.
func (r *reconciler) deleteFrontends(p *servicePort, want portPlan) (keeps bool, err error) {
	wanted := frontendsIn(want.frontends)
	for i := 0; i < len(p.frontends); {
		k := p.frontends[i].key
		if wanted(k) {
			i++
			continue
		}
		if heir := r.claims.winner(k); heir != nil && heir.of.name != p.key.service && !r.tired {
			r.keeping[p.key.service], keeps = true, true
			i++
			continue
		}
		if err := r.tables.DeleteFrontend(k); err != nil {
			return keeps, fmt.Errorf("service %s: %w", p.key.service, err)
		}
		r.writes.Frontends++
		r.stale.UDPFlows = r.stale.UDPFlows || p.key.protocol == UDP
		delete(r.owners, k)
		r.count(k, -1)
		p.removeFrontend(i)
	}
	return keeps, nil
}
