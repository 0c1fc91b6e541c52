// SPDX-License-Identifier: Apache-2.0

package lb

// Endpoints that a service's slices list under the name of another port. When the name of a service
// port changes, the Service and its slices are updated one after the other, in either order. In
// between, the port has no endpoints by name, and new connections are refused. A backend that an
// endpoint has stays for a while, so that flows, connections and session affinity continue: when
// the names match again, the port has the same backends.

import (
	"net/netip"
	"time"

	"shunt/maps"
)

// listedPause is how long such a backend stays. The slices of a cluster follow their Service within
// seconds. Where they never do, no client may keep an endpoint that another port has now.
const listedPause = 5 * time.Second

// servingByName has the serving endpoints in a service's slices, with the names of their ports.
// found is made at the first lookup. A lookup needs no more than two names of an endpoint.
type servingByName struct {
	slices []*EndpointSlice
	found  map[servingAt]servingNames
}

type servingAt struct {
	addr     netip.AddrPort
	protocol Protocol
}

// servingNames is the first name under which an endpoint serves, and whether there are others.
type servingNames struct {
	first  string
	others bool
}

// underOther reports whether an endpoint serves under another port name.
func (s *servingByName) underOther(addr netip.AddrPort, protocol Protocol, name string) bool {
	if s.found == nil {
		s.found = map[servingAt]servingNames{}
		for _, slice := range s.slices {
			for _, p := range slice.Ports {
				for i := range slice.Endpoints {
					e := &slice.Endpoints[i]
					at := servingAt{netip.AddrPortFrom(e.Addr, p.Port), p.Protocol}
					if !e.Ready && !e.Serving {
						continue
					}
					if names, there := s.found[at]; !there {
						s.found[at] = servingNames{first: p.Name}
					} else if !names.others && names.first != p.Name {
						s.found[at] = servingNames{names.first, true}
					}
				}
			}
		}
	}
	names, there := s.found[servingAt{addr, protocol}]
	return there && (names.others || names.first != name)
}

// beginListed prepares keepListed for a service.
func (r *reconciler) beginListed(name ServiceName, all []*EndpointSlice) {
	r.listed, r.keptListed = servingByName{slices: all}, false
	until, waits := r.listedUntil[name]
	if waits && !r.now().Before(until) {
		r.listed.slices = nil // listedPause has passed: keep nothing
	}
}

// endListed records when the service has to be looked at again.
func (r *reconciler) endListed(name ServiceName) {
	if !r.keptListed {
		delete(r.listedUntil, name)
	} else if _, waits := r.listedUntil[name]; !waits {
		r.listedUntil[name] = r.now().Add(listedPause)
	}
	r.listed = servingByName{}
}

// keepListed reports whether a backend that the port's plan does not want stays for now. It takes
// the backend out of the sets.
func (r *reconciler) keepListed(p *servicePort, b *backend) (bool, error) {
	if !r.listed.underOther(b.addr, p.key.protocol, p.key.port) {
		return false, nil
	}
	r.keptListed = true
	return true, r.setFlags(p, b, b.flags&maps.OnNode|maps.Renamed)
}

// takeLapsed adds to todo the services whose backends have stayed for listedPause.
func (r *reconciler) takeLapsed(todo *changes) {
	for name, until := range r.listedUntil {
		if !r.now().Before(until) {
			todo.object(object{service: name})
		}
	}
}

// lapses returns when the next such service is due; false where there is none.
func (r *reconciler) lapses() (next time.Time, any bool) {
	for _, until := range r.listedUntil {
		if !any || until.Before(next) {
			next, any = until, true
		}
	}
	return next, any
}
