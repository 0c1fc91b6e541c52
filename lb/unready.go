// SPDX-License-Identifier: Apache-2.0

package lb

// Endpoints that are listed and neither ready nor serving. No client is sent there, but
// TCP connections that are made go on until the endpoint is gone: a record that it has
// stays, so that nobody takes it for gone. It gets none for that purpose.

import (
	"fmt"

	"shunt/maps"
)

// withFlags adds the flags of a plan to those that a record has. That an endpoint serves
// is known at once; that it does not, when no frontend leads to it any more.
func withFlags(now, want uint8) uint8 {
	now &^= maps.Renamed
	if want&maps.Unready == 0 {
		now &^= maps.Unready
	}
	return now | want&^maps.Unready
}

// dropUnready frees the records of unready endpoints, and of those that are listed under
// another name: map backends has no room for endpoints that serve. As with every record, the
// room can be used after a rest.
func (r *reconciler) dropUnready() error {
	if len(r.orphans) > 0 {
		return nil // what they lead to is not known
	}
	for _, ports := range r.ports {
		for _, p := range ports {
			named := p.namedIDs() // by a frontend that could not be changed yet
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

// keepBackends frees the port's records but for those that stay, up to the first error.
func (r *reconciler) keepBackends(p *port, stays func(*backend) (bool, error)) (err error) {
	kept := p.backends[:0] // one Service may have very many, and all may go
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

// freeBackend frees a record of the port, which the caller removes from its list.
func (r *reconciler) freeBackend(p *port, id uint32) error {
	if err := r.tables.FreeBackend(id); err != nil {
		return fmt.Errorf("service %s: %w", p.key.service, err)
	}
	r.writes.Backends++
	r.records.put(id, r.now())
	r.stale.TCPBackends = r.stale.TCPBackends || p.key.protocol == TCP
	r.stale.UDPFlows = r.stale.UDPFlows || p.key.protocol == UDP
	return nil
}
