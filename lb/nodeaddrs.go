package lb

import (
	"cmp"
	"fmt"
	gomaps "maps"
	"net/netip"
	"slices"

	"go.uber.org/zap"

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

// reconcileAddrs makes map node_addrs hold the chosen addresses. What goes makes room
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

// reconcileCIDRs makes the maps hold these service CIDRs, in the same way. They are
// sorted, and the first that fit are those that count.
func (r *reconciler) reconcileCIDRs(want []netip.Prefix) error {
	if size := int(r.tables.Sizes().Sources); len(want) > size {
		r.log.Warn("not all service CIDRs fit; start shunt run with a larger "+maps.FlagSources,
			zap.Int("service_cidrs", len(want)), zap.Int("size", size))
		want = want[:size]
	}
	var errs []error
	r.cidrs = slices.DeleteFunc(r.cidrs, func(p netip.Prefix) bool {
		if slices.Contains(want, p) {
			return false
		}
		err := r.tables.DeleteServiceCIDR(p)
		if err == nil {
			r.writes.ServiceCidrs++
		}
		errs = append(errs, err)
		return err == nil
	})
	for _, p := range want {
		if slices.Contains(r.cidrs, p) {
			continue
		}
		if err := r.tables.SetServiceCIDR(p); err != nil {
			errs = append(errs, err)
			continue
		}
		r.writes.ServiceCidrs++
		r.cidrs = append(r.cidrs, p)
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
