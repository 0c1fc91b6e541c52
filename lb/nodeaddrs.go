// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"fmt"
	stdmaps "maps"
	"net/netip"
	"slices"

	"shunt/maps"
)

// NodePortAddresses says which of the node's addresses take node ports (--nodeport-addresses). Each
// family is independent: the addresses in its CIDRs take them, and the Node's primary address if
// Primary is set. A family for which neither is set takes them at all its addresses, as kube-proxy
// does. Loopback takes them for the node's own processes only.
type NodePortAddresses struct {
	CIDRs   []netip.Prefix
	Primary bool
	// NoLoopback keeps node ports off 127.0.0.0/8 and ::1, regardless of the other fields
	// (--iptables-localhost-nodeports=false).
	NoLoopback bool
}

// The CIDRs for the words that the flag and nodePortAddresses of KubeProxyConfiguration accept
// since Kubernetes 1.37.
var (
	everyCIDR = []netip.Prefix{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	loopbackCIDRs = []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
)

// ParseNodePortAddresses parses the values of the flag: CIDRs and the words primary, localhost and
// all, in any combination. It returns an error for the first value that is neither.
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

// Selective reports whether, in some family, not every address of the node takes node ports. It
// ignores NoLoopback.
func (n NodePortAddresses) Selective() bool { return n.selects(IPv4) || n.selects(IPv6) }

// selects reports whether not every address of a family takes node ports, NoLoopback aside.
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

// Choose returns the node addresses that map addrs is to hold: those that take node ports, with
// their flags. node is the last known Node, nil where none is known; held are the entries in the
// map now.
func (n NodePortAddresses) Choose(addrs []netip.Addr, node *Node, held map[netip.Addr]uint32) map[netip.Addr]uint32 {
	chosen := map[netip.Addr]uint32{}
	for _, a := range addrs {
		switch {
		case !n.takes(a, node, held):
		case a.IsLoopback():
			chosen[a] = maps.HostNetns
			// A connect() to the unspecified address goes to loopback.
			any := netip.IPv4Unspecified()
			if a.Is6() {
				any = netip.IPv6Unspecified()
			}
			chosen[any] = maps.HostNetns
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

// isPrimary reports whether an address is the Node's first of its family. While no address of the
// Node is known, the addresses that take node ports already keep them.
func (n NodePortAddresses) isPrimary(a netip.Addr, node *Node, held map[netip.Addr]uint32) bool {
	if node == nil || len(node.Addrs) == 0 {
		_, is := held[a]
		return is && !a.IsLoopback()
	}
	first, _ := ofFamily(node.Addrs, FamilyOf(a))
	return a == first
}

// atMost limits chosen to n addresses, for which map addrs has room. The loopback and unspecified
// addresses (maps.HostNetns) come first, then the order of addresses decides.
func atMost(n int, chosen map[netip.Addr]uint32) map[netip.Addr]uint32 {
	if len(chosen) <= n {
		return chosen
	}
	sorted := slices.SortedFunc(stdmaps.Keys(chosen), func(a, b netip.Addr) int {
		return cmp.Or(cmp.Compare(chosen[b], chosen[a]), a.Compare(b))
	})
	for _, a := range sorted[n:] {
		delete(chosen, a)
	}
	return chosen
}

// reconcileAddrs makes map addrs hold the chosen addresses of the node. Removals come first and
// make room for additions. After an error it continues with the other addresses.
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
		r.stale.UDPFlows = true // for flows to node ports at this address
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
	return maps.FirstErrors(errs, 0)
}

// nodePortAddrs returns the node addresses in map addrs, sorted, without the unspecified ones.
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
