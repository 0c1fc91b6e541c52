package lb

import (
	"fmt"
	"net/netip"
	"slices"

	"shunt/maps"
)

// NodePortAddresses says which of the node's addresses take node ports
// (--nodeport-addresses): those in the CIDRs, and the Node's primary ones where
// that is asked for, or all where nothing is. Loopback takes them for the node's
// own processes.
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
			n.CIDRs = append(n.CIDRs, p.Masked())
		}
	}
	if slices.Contains(n.CIDRs, everyCIDR[0]) && slices.Contains(n.CIDRs, everyCIDR[1]) {
		return NodePortAddresses{}, nil
	}
	return n, nil
}

// Selective says whether some addresses of the node don't take node ports, of
// those that others than the node itself can reach.
func (n NodePortAddresses) Selective() bool { return n.Primary || len(n.CIDRs) > 0 }

// Choose gives the entries of map node_addrs: the addresses with their flags.
func (n NodePortAddresses) Choose(addrs []netip.Addr, node *Node) map[netip.Addr]uint32 {
	chosen := map[netip.Addr]uint32{}
	for _, a := range addrs {
		switch {
		case !n.takes(a, node):
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

func (n NodePortAddresses) takes(a netip.Addr, node *Node) bool {
	switch {
	case n.NoLoopback && a.IsLoopback():
		return false
	case !n.Selective():
		return true
	case n.Primary && node != nil && slices.Contains(primary(node.Addrs), a):
		return true
	}
	return slices.ContainsFunc(n.CIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// primary gives the first address of each family.
func primary(addrs []netip.Addr) []netip.Addr {
	var first []netip.Addr
	for _, a := range addrs {
		if !slices.ContainsFunc(first, func(f netip.Addr) bool { return FamilyOf(f) == FamilyOf(a) }) {
			first = append(first, a)
		}
	}
	return first
}

// reconcileAddrs makes map node_addrs hold the chosen addresses.
func (r *reconciler) reconcileAddrs(want map[netip.Addr]uint32) error {
	for a, flags := range want {
		if old, there := r.nodeAddrs[a]; there && old == flags {
			continue
		}
		if err := r.tables.SetNodeAddr(a, flags); err != nil {
			return err
		}
		r.writes.NodeAddrs++
		r.nodeAddrs[a] = flags
	}
	for a := range r.nodeAddrs {
		if _, keep := want[a]; keep {
			continue
		}
		if err := r.tables.DeleteNodeAddr(a); err != nil {
			return err
		}
		r.writes.NodeAddrs++
		r.stale.UDPFlows = true // to node ports at this address
		delete(r.nodeAddrs, a)
	}
	return nil
}

// reconcileCIDRs makes the maps hold these service CIDRs.
func (r *reconciler) reconcileCIDRs(want []netip.Prefix) error {
	for _, p := range want {
		if slices.Contains(r.cidrs, p) {
			continue
		}
		if err := r.tables.SetServiceCIDR(p); err != nil {
			return err
		}
		r.writes.ServiceCidrs++
		r.cidrs = append(r.cidrs, p)
	}
	for i := 0; i < len(r.cidrs); {
		if slices.Contains(want, r.cidrs[i]) {
			i++
			continue
		}
		if err := r.tables.DeleteServiceCIDR(r.cidrs[i]); err != nil {
			return err
		}
		r.writes.ServiceCidrs++
		r.cidrs = slices.Delete(r.cidrs, i, i+1)
	}
	return nil
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
