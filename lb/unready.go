// SPDX-License-Identifier: Apache-2.0

package lb

// Endpoints that are listed and neither ready nor serving. No new connection goes there, but TCP
// connections last until the endpoint is gone. So an existing backend stays: else its sockets would
// be treated as stale. An unready endpoint gets no new backend.

import (
	"fmt"

	"shunt/maps"
)

// withFlags adds the flags of a plan to those of a backend. That an endpoint serves is set at once;
// that it does not, only after no frontend leads to it any more.
func withFlags(now, want uint8) uint8 {
	now &^= maps.Renamed
	if want&maps.Unready == 0 {
		now &^= maps.Unready
	}
	return now | want&^maps.Unready
}

// dropUnready frees the backends of unready endpoints, and those kept by listed.go, when map
// backends has no room for endpoints that serve. Freed ids can be used after the grace period.
func (r *reconciler) dropUnready() error {
	if len(r.orphans) > 0 {
		return nil // the backends that orphans use are not known
	}
	for _, ports := range r.ports {
		for _, p := range ports {
			named := p.namedIDs() // frontends that could not be changed yet use these
			err := r.keepBackends(p, func(b *backend) (bool, error) {
				return b.flags&(maps.Unready|maps.Renamed) == 0 || named[b.id], nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// keepBackends frees the port's backends, except those that stay, up to the first error.
func (r *reconciler) keepBackends(p *servicePort, stays func(*backend) (bool, error)) (err error) {
	kept := p.backends[:0] // in place: one Service may have very many
	for _, b := range p.backends {
		keep := true
		if err == nil {
			keep, err = stays(&b)
		}
		if err == nil && !keep {
			err = r.freeBackend(p, b.id)
		}
		if keep || err != nil {
			kept = append(kept, b)
		}
	}
	p.backends = kept
	return err
}

// freeBackend frees a backend of the port. The caller removes it from the port's list.
func (r *reconciler) freeBackend(p *servicePort, id uint32) error {
	if err := r.tables.FreeBackend(id); err != nil {
		return fmt.Errorf("service %s: %w", p.key.service, err)
	}
	r.writes.Backends++
	r.records.put(id, r.now())
	r.stale.TCPBackends = r.stale.TCPBackends || p.key.protocol == TCP
	r.stale.UDPFlows = r.stale.UDPFlows || p.key.protocol == UDP
	return nil
}
