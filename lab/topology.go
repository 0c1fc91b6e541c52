// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sysctls returns the settings of a namespace: the common ones and more. IPv6 addresses are
// usable at once (no duplicate address detection), and there is no reverse-path filter. ICMP
// redirects are ignored: a node without hooks sends one for a load-balancer IP, and a client that
// accepted it would not send to that node for five minutes.
func sysctls(more map[string]string) map[string]string {
	all := map[string]string{
		"ipv6/conf/all/accept_dad":     "0",
		"ipv6/conf/default/accept_dad": "0",
		"ipv4/conf/all/rp_filter":      "0",
		"ipv4/conf/default/rp_filter":  "0",

		"ipv4/conf/all/accept_redirects":     "0",
		"ipv4/conf/default/accept_redirects": "0",
		"ipv6/conf/all/accept_redirects":     "0",
		"ipv6/conf/default/accept_redirects": "0",
	}
	for k, v := range more {
		all[k] = v
	}
	return all
}

var routerSysctls = sysctls(map[string]string{
	"ipv4/ip_forward":          "1",
	"ipv6/conf/all/forwarding": "1",
})

const bridgeName = "wire"

// makeWire makes the bridge of all nodes and clients. Its namespace does not forward:
// packets on the default route are dropped there.
func (l *Lab) makeWire() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if l.wire, err = l.newSpace("wire", sysctls(nil)); err != nil {
		return err
	}
	snoop := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}, MulticastSnooping: &snoop}
	if err := l.wire.nl.LinkAdd(br); err != nil {
		return fmt.Errorf("make the wire's bridge: %w", err)
	}
	return l.wire.address(bridgeName, onWire(wireHost))
}

// newSpace makes a namespace that Close removes.
func (l *Lab) newSpace(name string, sysctls map[string]string) (*netns, error) {
	if err := l.ctx.Err(); err != nil {
		return nil, fmt.Errorf("the lab is closed: %w", err)
	}
	n, err := newNetns(l.state.netnsName(name), sysctls)
	if err != nil {
		return nil, err
	}
	l.spaces = append(l.spaces, n)
	return n, nil
}

// plug connects a namespace to the wire: its eth0 gets the address of that host number.
func (l *Lab) plug(n *netns, host int) error {
	bridge, err := l.wire.nl.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	port := fmt.Sprintf("port%d", host)
	if err := connect(l.wire, port, n, "eth0"); err != nil {
		return err
	}
	link, err := l.wire.nl.LinkByName(port)
	if err != nil {
		return err
	}
	if err := l.wire.nl.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("join %s to the wire: %w", n.name, err)
	}
	return n.address("eth0", onWire(host))
}

// connect makes a veth pair between two namespaces, up at both ends.
func connect(a *netns, aName string, b *netns, bName string) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: aName},
		PeerName:      bName,
		PeerNamespace: netlink.NsFd(b.handle.Fd()),
	}
	if err := a.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("make veth %s in %s: %w", aName, a.name, err)
	}
	if err := a.up(aName); err != nil {
		return err
	}
	return b.up(bName)
}

func (n *netns) up(device string) error {
	link, err := n.nl.LinkByName(device)
	if err == nil {
		err = n.nl.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("bring up %s in %s: %w", device, n.name, err)
	}
	return nil
}

// address adds one address of each family to a device and brings it up.
func (n *netns) address(device string, p pair) error {
	if err := n.up(device); err != nil {
		return err
	}
	return p.each(func(prefix netip.Prefix) error { return n.addAddr(device, prefix) })
}

// route adds a route to dst through a gateway behind the device. Without a gateway, dst is
// on the link itself.
func (n *netns) route(dst netip.Prefix, via netip.Addr, device string) error {
	link, err := n.nl.LinkByName(device)
	if err != nil {
		return err
	}
	r := &netlink.Route{Dst: ipNet(dst), LinkIndex: link.Attrs().Index}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	} else if dst.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := n.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("route %v by %v %s in %s: %w", dst, via, device, n.name, err)
	}
	return nil
}

// settle waits until the kernel answers at own and can resolve neighbours on the device: the
// kernel completes the addition of IPv6 addresses only after the call that adds them has
// returned.
func (n *netns) settle(device string, own netip.Addr) error {
	link, err := n.nl.LinkByName(device)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		ready, err := n.settled(link, own)
		if ready {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("IPv6 on %s in %s did not get ready in 5s (last error: %w)", device, n.name, err)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (n *netns) settled(link netlink.Link, own netip.Addr) (bool, error) {
	addrs, err := n.nl.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return false, err
	}
	linkLocal := false
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			return false, nil
		}
		linkLocal = linkLocal || a.IP.IsLinkLocalUnicast()
	}
	if !linkLocal {
		return false, nil
	}
	routes, err := n.nl.RouteGet(own.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
