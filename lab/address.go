// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// AddAddr adds an address to a pod and a route to that pod on the node, so that one server
// can be many endpoints. The address must be in SharedCIDR4, or in the node's pod range and
// unused (the last addresses of the range are assigned to the last pods). Pods of several
// nodes may have the same address of SharedCIDR4, so that the same services work on each of
// these nodes.
func (p *Pod) AddAddr(addr netip.Addr) {
	p.lab.t.Helper()
	if p.lab.Err() != nil {
		return
	}
	if err := p.addAddr(addr); err != nil {
		p.lab.fail(fmt.Errorf("give pod %s the address %v: %w", p.name, addr, err))
	}
}

func (p *Pod) addAddr(addr netip.Addr) error {
	if p.veth == "" {
		return errors.New("only pods with a network of their own have a range")
	}
	prefix := netip.PrefixFrom(addr, addr.BitLen())
	if !podCIDR(p.node.number).sameFamily(prefix).Contains(addr) && !SharedCIDR4.Contains(addr) {
		return fmt.Errorf("node %s has another range", p.node.name)
	}
	if err := p.space.addAddr("eth0", prefix); err != nil || p.lab.network.Bridge {
		return err // on a bridge, ARP or neighbour discovery finds the pod
	}
	return p.node.space.route(prefix, netip.Addr{}, p.veth)
}

// BorrowAddr adds an address to a pod without a route on the node, and makes the address the
// source of the pod's packets to toward. A process with CAP_NET_ADMIN in a pod can do the same.
func (p *Pod) BorrowAddr(addr, toward netip.Addr) {
	p.lab.t.Helper()
	p.change(fmt.Sprintf("borrow the address %v for packets to %v", addr, toward), func() error {
		link, err := p.space.nl.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := p.space.addAddr("eth0", netip.PrefixFrom(addr, addr.BitLen())); err != nil {
			return err
		}
		route := &netlink.Route{Dst: ipNet(netip.PrefixFrom(toward, toward.BitLen())), LinkIndex: link.Attrs().Index, Src: addr.AsSlice()}
		if toward.Is4() {
			route.Scope = netlink.SCOPE_LINK
		}
		return p.space.nl.RouteReplace(route)
	})
}
