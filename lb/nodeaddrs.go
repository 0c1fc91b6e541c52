package lb

import (
	"fmt"
	"net/netip"
	"slices"

	"shunt/maps"
)

// NodePortAddresses says which of the node's addresses take node ports
// (--nodeport-addresses): those in the CIDRs, or the Node's primary ones, or
// all where neither is given. Loopback takes them for the node's own processes.
type NodePortAddresses struct {
	CIDRs   []netip.Prefix
	Primary bool
}

// ParseNodePortAddresses reads the flag's values: CIDRs, or the one word primary.
func ParseNodePortAddresses(values []string) (NodePortAddresses, error) {
	var n NodePortAddresses
	if len(values) == 1 && values[0] == "primary" {
		n.Primary = true
		return n, nil
	}
	for _, v := range values {
		p, err := netip.ParsePrefix(v)
		if err != nil {
			return n, fmt.Errorf("--nodeport-addresses %q: neither a CIDR nor the one word primary: %w", v, err)
		}
		n.CIDRs = append(n.CIDRs, p.Masked())
	}
	return n, nil
}

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
	case n.Primary:
		return node != nil && slices.Contains(primary(node.Addrs), a)
	case len(n.CIDRs) > 0:
		return slices.ContainsFunc(n.CIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return true
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
		delete(r.nodeAddrs, a)
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
