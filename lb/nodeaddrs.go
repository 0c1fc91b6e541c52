// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"fmt"
	gomaps "maps"
	"net/netip"
	"slices"

	"shunt/maps"
)

// NodePortAddresses says which of the node's addresses take node ports
// (--nodeport-addresses), for each family by itself: those in the family's CIDRs,
// and the Node's primary one where that is asked for. A family for which nothing
// is asked takes them at all of its addresses, as kube-proxy does. Loopback takes
// them for the node's own processes.
type NodePortAddresses struct {
	CIDRs   []netip.Prefix
	Primary bool
	// NoLoopback keeps node ports off 127.0.0.0/8 and ::1 whatever the rest says
	// (--iptables-localhost-nodeports=false).
	NoLoopback bool
}

// The words for CIDRs that the flag and KubeProxyConfiguration's
// nodePortAddresses know since Kubernetes 1.37.
var (
	everyCIDR = []netip.Prefix{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	loopbackCIDRs = []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
)

// ParseNodePortAddresses reads the flag's values: CIDRs and the words primary,
// localhost and all, in any combination.
func ParseNodePortAddresses(values []string) (NodePortAddresses, error) {
	var n NodePortAddresses
	for _, v := range values {
		switch v {
		case "primary":
			n.Primary = true
		case "localhost":
			n.CIDRs = append(n.CIDRs, loopbackCIDRs...)
		case "all":
			n.CIDRs = append(n.CIDRs, everyCIDR...)
		default:
			p, err := netip.ParsePrefix(v)
			if err != nil {
				return n, fmt.Errorf("%q: neither a CIDR nor one of the words primary, localhost and all: %w", v, err)
			}
			if a := p.Addr(); a.Is4In6() { // addresses are compared unmapped
				if p.Bits() < 96 {
					return n, fmt.Errorf("%q: an IPv4-mapped CIDR that is wider than all of IPv4", v)
				}
				p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
			}
			n.CIDRs = append(n.CIDRs, p.Masked())
		}
	}
	if !n.selects(IPv4) && !n.selects(IPv6) {
		return NodePortAddresses{}, nil
	}
	return n, nil
}

// Selective reports whether some addresses of the node don't take node ports, of
// those that others than the node itself can reach.
func (n NodePortAddresses) Selective() bool { return n.selects(IPv4) || n.selects(IPv6) }

// selects reports whether not every address of a family takes node ports.
func (n NodePortAddresses) selects(f Family) bool {
	selects := n.Primary
	for _, p := range n.CIDRs {
		switch {
		case FamilyOf(p.Addr()) != f:
		case p.Bits() == 0:
			return false
		default:
			selects = true
		}
	}
	return selects
}

// Choose returns what map addrs is to hold of the node: those of the node's addresses that
// take node ports, with their flags. node is the last that is known of the Node, nil
// for nothing; held are the entries that the map has now.
func (n NodePortAddresses) Choose(addrs []netip.Addr, node *Node, held map[netip.Addr]uint32) map[netip.Addr]uint32 {
	chosen := map[netip.Addr]uint32{}
	for _, a := range addrs {
		switch {
		case !n.takes(a, node, held):
		case a.IsLoopback():
			chosen[a] = maps.OwnNetns
			// To connect to the unspecified address means loopback.
			any := netip.IPv4Unspecified()
			if a.Is6() {
				any = netip.IPv6Unspecified()
			}
			chosen[any] = maps.OwnNetns
		default:
			chosen[a] = 0
		}
	}
	return chosen
}

func (n NodePortAddresses) takes(a netip.Addr, node *Node, held map[netip.Addr]uint32) bool {
	switch {
	case n.NoLoopback && a.IsLoopback():
		return false
	case !n.selects(FamilyOf(a)):
		return true
	case n.Primary && n.isPrimary(a, node, held):
		return true
	}
	return slices.ContainsFunc(n.CIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// isPrimary reports whether an address is the Node's first of its family. While no
// address of the Node is known, those that take node ports already go on to.
func (n NodePortAddresses) isPrimary(a netip.Addr, node *Node, held map[netip.Addr]uint32) bool {
	if node == nil || len(node.Addrs) == 0 {
		_, is := held[a]
		return is && !a.IsLoopback()
	}
	first, _ := ofFamily(node.Addrs, FamilyOf(a))
	return a == first
}

// atMost leaves out addresses for which the maps keep no room: those of the node's own
// processes come first, then the order of addresses decides.
func atMost(n int, chosen map[netip.Addr]uint32) map[netip.Addr]uint32 {
	if len(chosen) <= n {
		return chosen
	}
	sorted := slices.SortedFunc(gomaps.Keys(chosen), func(a, b netip.Addr) int {
		return cmp.Or(cmp.Compare(chosen[b], chosen[a]), a.Compare(b))
	})
	for _, a := range sorted[n:] {
		delete(chosen, a)
	}
	return chosen
}

// reconcileAddrs makes map addrs hold the chosen addresses of the node. What goes makes room
// for what comes, and one that fails keeps no other from being programmed.
func (r *reconciler) reconcileAddrs(want map[netip.Addr]uint32) error {
	var errs []error
	for a := range r.nodeAddrs {
		if _, keep := want[a]; keep {
			continue
		}
		if err := r.tables.DeleteNodeAddr(a); err != nil {
			errs = append(errs, err)
			continue
		}
		r.writes.NodeAddrs++
		r.stale.UDPFlows = true // to node ports at this address
		delete(r.nodeAddrs, a)
	}
	for a, flags := range want {
		if old, there := r.nodeAddrs[a]; there && old == flags {
			continue
		}
		if err := r.tables.SetNodeAddr(a, flags); err != nil {
			errs = append(errs, err)
			continue
		}
		r.writes.NodeAddrs++
		r.nodeAddrs[a] = flags
	}
	return firstOf(errs)
}

// nodePortAddrs gives the addresses in the maps that an interface has, sorted.
func (r *reconciler) nodePortAddrs() []netip.Addr {
	var addrs []netip.Addr
	for a := range r.nodeAddrs {
		if !a.IsUnspecified() {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}
