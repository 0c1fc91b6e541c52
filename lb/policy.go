// SPDX-License-Identifier: Apache-2.0

package lb

// Policy: which endpoints of a service port this node uses.
//
//   - The cluster set: ready endpoints that the topology allows; if there are none,
//     all that are both serving and terminating, on any node (KEP-1672).
//   - The local set: ready endpoints on this node; if there are none, those on this
//     node that are both serving and terminating (KEP-1669). Hints are not used.
//   - Topology uses the hints alone (KEP-2433, KEP-3015): if every ready endpoint has
//     node hints and one of them names this node, the endpoints that name it; else the
//     same with zone hints and this node's zone; else all ready endpoints.
//
// The traffic policy of a frontend selects one of the two sets (plan.go).

import (
	"net/netip"
	"slices"
)

// place is what planning needs to know of this node and the cluster. Empty node and zone are
// unknown and match no hint.
type place struct {
	node, zone string
	// addrs are the node's addresses, sorted, without loopback.
	addrs []netip.Addr
	// cidrs are the known service CIDRs.
	cidrs []netip.Prefix
	// maxFrontends limits the frontends of one service; 0: no limit.
	maxFrontends int
	// reserved is what no service may have; nil: nothing.
	reserved *reservations
}

// candidate is one endpoint of a service port, merged over all slices.
type candidate struct {
	addr                        netip.AddrPort
	ready, serving, terminating bool
	// local: some slice lists the endpoint on this node.
	local bool
	hints *Hints
	// inCluster and inLocal: it is in the cluster set, and in the local set.
	inCluster, inLocal bool
}

// rank orders the conditions that slices list for one endpoint: ready first, then serving, then
// terminating.
func (c *candidate) rank() int {
	r := 0
	if c.ready {
		r += 4
	}
	if c.serving {
		r += 2
	}
	if c.terminating {
		r++
	}
	return r
}

// merge merges the listing of the same endpoint by another slice. The better conditions win. With
// equal conditions the hints are united, and the endpoint has no hints if either listing has none.
// The result does not depend on the order.
func (c *candidate) merge(o candidate) {
	local := c.local || o.local
	switch d := c.rank() - o.rank(); {
	case d < 0:
		*c = o
	case d == 0:
		c.hints = mergeHints(c.hints, o.hints)
	}
	c.local = local
}

func mergeHints(a, b *Hints) *Hints {
	if a == b || b == nil {
		return b
	}
	if a == nil {
		return nil
	}
	return &Hints{Nodes: unite(a.Nodes, b.Nodes), Zones: unite(a.Zones, b.Zones)}
}

func unite(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// candidates returns the endpoints of one family that slices list for a port name and protocol,
// merged and sorted by address and port.
func candidates(ports *portIndex, name string, protocol Protocol, family Family, at place) []candidate {
	pooled := listings.Get().(*[]listing)
	defer listings.Put(pooled)
	listed := (*pooled)[:0]
	ports.each(name, protocol, func(n int, port uint16) {
		endpoints := ports.slices[n].Endpoints
		for i := range endpoints {
			if a := endpoints[i].Addr; FamilyOf(a) == family {
				listed = append(listed, newListing(a, port, n, i))
			}
		}
	})
	n := len(listed)
	*pooled = slices.Grow(listed, n) // twice the room, for sorting
	listed = sortListings((*pooled)[:n], (*pooled)[n:2*n])
	merged := make([]candidate, 0, len(listed))
	for _, l := range listed {
		c := newCandidate(&ports.slices[l.slice].Endpoints[l.index], l.port(), at)
		if n := len(merged); n > 0 && merged[n-1].addr == c.addr {
			merged[n-1].merge(c)
			continue
		}
		merged = append(merged, c)
	}
	return merged
}

func newCandidate(e *Endpoint, port uint16, at place) candidate {
	return candidate{
		addr:        netip.AddrPortFrom(e.Addr, port),
		ready:       e.Ready,
		serving:     e.Serving,
		terminating: e.Terminating,
		local:       at.node != "" && e.Node == at.node,
		hints:       e.Hints,
	}
}

// choose marks each candidate with its sets.
func choose(all []candidate, at place) {
	draining := func(c *candidate) bool { return c.serving && c.terminating }
	mark(all, func(c *candidate) { c.inCluster = true }, topology(all, at), draining)
	mark(all, func(c *candidate) { c.inLocal = true },
		func(c *candidate) bool { return c.local && c.ready },
		func(c *candidate) bool { return c.local && draining(c) })
}

// mark calls set for the candidates that match the first rule that matches any.
func mark(all []candidate, set func(*candidate), rules ...func(*candidate) bool) {
	for _, takes := range rules {
		none := true
		for i := range all {
			if takes(&all[i]) {
				set(&all[i])
				none = false
			}
		}
		if !none {
			return
		}
	}
}

// topology returns the rule for the ready endpoints that the hints allow on this node.
func topology(all []candidate, at place) func(*candidate) bool {
	forNode := func(c *candidate) bool { return c.ready && slices.Contains(c.hints.Nodes, at.node) }
	forZone := func(c *candidate) bool { return c.ready && slices.Contains(c.hints.Zones, at.zone) }
	var ready, nodes, zones, here, near int
	for i := range all {
		c := &all[i]
		if !c.ready {
			continue
		}
		ready++
		if c.hints == nil {
			continue
		}
		nodes += min(len(c.hints.Nodes), 1)
		zones += min(len(c.hints.Zones), 1)
		if at.node != "" && forNode(c) {
			here++
		}
		if at.zone != "" && forZone(c) {
			near++
		}
	}
	switch {
	case nodes == ready && here > 0:
		return forNode
	case zones == ready && near > 0:
		return forZone
	}
	return func(c *candidate) bool { return c.ready }
}

// localReady counts the addresses of a service's ready endpoints on this node, of one family: what
// a health check reports to a load balancer. It counts candidates of the service's own ports, like
// the data path. An address that serves several ports counts once.
func localReady(svc *Service, ports *portIndex, family Family, at place) int {
	var addrs []netip.Addr
	for _, p := range svc.Ports {
		if p.Protocol != TCP && p.Protocol != UDP {
			continue
		}
		for _, c := range candidates(ports, p.Name, p.Protocol, family, at) {
			if c.local && c.ready {
				addrs = append(addrs, c.addr.Addr())
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return len(slices.Compact(addrs))
}
