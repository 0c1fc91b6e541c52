// SPDX-License-Identifier: Apache-2.0

package lb

// Addresses and ports that no Service may take from this daemon: those where it reaches the API
// server, and those where it listens itself. A tenant who names them in externalIPs would cut the
// daemon off from the API server, or answer its probes. Cluster IPs are exempt, except from the
// addresses of hook checks: the API server allocates cluster IPs, and the daemon may well use one
// to reach it.

import (
	"fmt"
	"net/netip"
	"slices"

	"shunt/maps"
)

// Reserved is what no Service may have. It is immutable after it was passed to a Store.
type Reserved struct {
	// API are the addresses of the API server that the daemon uses.
	API []netip.AddrPort
	// Listens are the addresses where the daemon listens. An unspecified address stands for all
	// addresses of the node. healthCheckNodePorts need not be listed.
	Listens []netip.AddrPort
	// Probes are the addresses of hook checks (maps.HookCheckAddrs). No Service may have one, at any
	// port and in any rank, and no reconcile changes their entries.
	Probes []netip.Addr
	// NoExternalIPs: spec.externalIPs are not served.
	NoExternalIPs bool
}

// reservations is what is reserved on this node. Entries of byPort are TCP ports.
type reservations struct {
	noExternalIPs bool
	probes        []netip.Addr
	byPort        map[uint16][]reservation
	// node has the addresses of the node. takes has those of them that take node ports.
	node  []netip.Addr
	takes map[netip.Addr]uint32
	// of is the state that it was made from.
	of reservedFrom
}

// reservation is an address that is reserved at a port. The unspecified address stands for all
// addresses of the node.
type reservation struct {
	addr netip.Addr
	why  string
}

// reservedFrom identifies a state of the inputs of reservations: checks and addrs are counters of
// their changes.
type reservedFrom struct {
	reserved      *Reserved
	checks, addrs int
}

func newReservations(of reservedFrom, node []netip.Addr, takes map[netip.Addr]uint32, checks map[ServiceName][]HealthCheck) *reservations {
	r := &reservations{byPort: map[uint16][]reservation{}, node: node, takes: takes, of: of}
	add := func(at netip.AddrPort, why string) {
		r.byPort[at.Port()] = append(r.byPort[at.Port()], reservation{at.Addr().Unmap(), why})
	}
	if of.reserved != nil {
		r.noExternalIPs, r.probes = of.reserved.NoExternalIPs, of.reserved.Probes
		for _, at := range of.reserved.API {
			add(at, fmt.Sprintf("this node reaches the API server at %s", at))
		}
		for _, at := range of.reserved.Listens {
			add(at, fmt.Sprintf("shunt itself listens at %s", at))
		}
	}
	for name, c := range checks {
		add(netip.AddrPortFrom(netip.IPv6Unspecified(), c[0].Port), fmt.Sprintf("it is the healthCheckNodePort of %s", name))
	}
	return r
}

// refuses returns why a service may not have a frontend, "" where it may.
func (r *reservations) refuses(kind maps.FrontendKind, k maps.FrontendKey) string {
	switch {
	case r == nil:
		return ""
	case slices.Contains(r.probes, k.AddrPort().Addr()):
		return fmt.Sprintf("shunt asks at %s whether its hooks act", k.AddrPort().Addr())
	case rankOf(kind) == rankClusterIP:
		return ""
	}
	if r.noExternalIPs && kind == maps.ExternalIP {
		return "externalIPs are switched off on this node"
	}
	if Protocol(k.Protocol) != TCP {
		return ""
	}
	for _, res := range r.byPort[k.AddrPort().Port()] {
		if r.meets(res.addr, kind, k.AddrPort().Addr()) {
			return res.why
		}
	}
	return ""
}

// meets reports whether a frontend includes a reserved address.
func (r *reservations) meets(reserved netip.Addr, kind maps.FrontendKind, a netip.Addr) bool {
	switch {
	case kind == maps.NodePort && reserved.IsUnspecified():
		return true
	case kind == maps.NodePort: // a node port includes all addresses that take node ports
		_, takes := r.takes[reserved]
		return takes && FamilyOf(reserved) == FamilyOf(a)
	case reserved.IsUnspecified():
		return slices.Contains(r.node, a)
	}
	return reserved == a
}

// reserve makes the reservations anew if their inputs have changed. It returns the services that
// this may affect.
func (l *Loop) reserve() map[ServiceName]bool {
	old := l.reserved
	of := reservedFrom{l.around.reserved, l.checks.ports, l.addrsVersion}
	if old != nil && old.of == of {
		return nil
	}
	l.reserved = newReservations(of, l.around.addrs, l.r.claims.takes, l.checks.byService)
	touched := map[ServiceName]bool{}
	for name := range l.refused {
		touched[name] = true
	}
	now := l.reserved
	if old != nil && old.noExternalIPs != now.noExternalIPs || old == nil && now.noExternalIPs {
		for _, names := range l.r.outer {
			touch(touched, names)
		}
	}
	for _, res := range []*reservations{old, now} {
		res.eachAddr(func(a netip.Addr) { touch(touched, l.r.outer[a]) })
		if res == nil {
			continue
		}
		for port := range res.byPort {
			for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
				for _, c := range l.r.claims.to[maps.NewFrontendKey(any, port, uint8(TCP))] {
					touched[c.port.of.name] = true
				}
			}
		}
	}
	return touched
}

func touch(touched map[ServiceName]bool, names []ServiceName) {
	for _, name := range names {
		touched[name] = true
	}
}

// eachAddr calls do with the addresses of the node, and with every reserved address.
func (r *reservations) eachAddr(do func(netip.Addr)) {
	if r == nil {
		return
	}
	for _, a := range r.node {
		do(a)
	}
	for _, list := range r.byPort {
		for _, res := range list {
			do(res.addr)
		}
	}
}
