// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Changes of a topology that is in use.

// Route says how packets for a destination leave.
type Route struct {
	Dst netip.Prefix
	// Via is a node on the wire; nil: the destination is on the link itself.
	Via *Node
	// Tunnel leads to Via's pods by the tunnel of the destination's family instead.
	Tunnel bool
	// Device is the link; empty: the wire's, eth0.
	Device string
	// MTU is the largest packet, in bytes, whatever the device takes: a router that
	// has such a route tells senders of larger packets so. 0: the device's.
	MTU int
}

// SetRoute makes or replaces a route of the pod's, or of the node's, given one of
// its HostPods.
func (p *Pod) SetRoute(r Route) {
	p.lab.t.Helper()
	p.change("route "+r.Dst.String(), func() error {
		route, err := p.kernelRoute(r)
		if err != nil {
			return err
		}
		return p.space.nl.RouteReplace(route)
	})
}

// DeleteRoute takes a route away that SetRoute made.
func (p *Pod) DeleteRoute(r Route) {
	p.lab.t.Helper()
	p.change("take away the route to "+r.Dst.String(), func() error {
		route, err := p.kernelRoute(r)
		if err != nil {
			return err
		}
		return p.space.nl.RouteDel(route)
	})
}

func (p *Pod) kernelRoute(r Route) (*netlink.Route, error) {
	device := r.Device
	if device == "" {
		device = "eth0"
	}
	var far tunnel
	if r.Tunnel {
		for _, far = range tunnelsOf(r.Via.number) {
			if far.six == r.Dst.Addr().Is6() {
				break
			}
		}
		device = far.name
	}
	link, err := p.space.nl.LinkByName(device)
	if err != nil {
		return nil, err
	}
	route := &netlink.Route{Dst: ipNet(r.Dst), LinkIndex: link.Attrs().Index, MTU: r.MTU, MTULock: r.MTU > 0}
	if r.Tunnel {
		route.Gw, route.Flags = far.addr().AsSlice(), int(netlink.FLAG_ONLINK)
	} else if r.Via != nil {
		route.Gw = onWire(r.Via.number).of(r.Dst).AsSlice()
	} else if r.Dst.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	return route, nil
}

// AddAddr gives one of the node's devices another address.
func (n *Node) AddAddr(device string, addr netip.Prefix) {
	n.lab.t.Helper()
	n.change(fmt.Sprintf("give %s the address %v", device, addr), func() error { return n.space.addAddr(device, addr) })
}

// RemoveAddr takes an address from one of the node's devices.
func (n *Node) RemoveAddr(device string, addr netip.Prefix) {
	n.lab.t.Helper()
	n.change(fmt.Sprintf("take the address %v from %s", addr, device), func() error {
		link, err := n.space.nl.LinkByName(device)
		if err != nil {
			return err
		}
		return n.space.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(addr)})
	})
}

// Link joins the node and an outside client by a device of that name at both ends,
// beside the wire. The node's address is 192.168.101.<n> (and fd00:192:168:101::<n>),
// the client's has its number on the wire.
func (n *Node) Link(client *Pod, device string) {
	n.lab.t.Helper()
	n.change(fmt.Sprintf("link with %s by %s", client.name, device), func() error {
		if client.node != nil {
			return errors.New("only outside clients can be linked")
		}
		err := errors.Join(
			connect(n.space, device, client.space, device),
			n.space.address(device, onLink(n.number)),
			client.space.address(device, client.linkAddr()),
		)
		if err != nil {
			return err
		}
		return errors.Join(n.space.settle(device, onLink(n.number).v6.Addr()),
			client.space.settle(device, client.linkAddr().v6.Addr()))
	})
}

// LinkAddrs gives the node's addresses on links, IPv4 first; see Link.
func (n *Node) LinkAddrs() []netip.Addr {
	p := onLink(n.number)
	return []netip.Addr{p.v4.Addr(), p.v6.Addr()}
}

// linkAddr is a client's address on links.
func (p *Pod) linkAddr() pair { return onLink(int(p.addrs.v4.Addr().As4()[3])) }

// LinkAddrs gives a client's addresses on links, IPv4 first; see Node.Link.
func (p *Pod) LinkAddrs() []netip.Addr {
	a := p.linkAddr()
	return []netip.Addr{a.v4.Addr(), a.v6.Addr()}
}

func (n *Node) change(what string, do func() error) {
	n.lab.t.Helper()
	n.lab.change("node "+n.name, what, do)
}

func (p *Pod) change(what string, do func() error) {
	p.lab.t.Helper()
	p.lab.change("pod "+p.name, what, do)
}

func (l *Lab) change(whose, what string, do func() error) {
	l.t.Helper()
	l.mu.Lock()
	err := l.Err()
	if err == nil {
		if err = do(); err != nil {
			err = fmt.Errorf("%s: %s: %w", whose, what, err)
		}
	}
	l.mu.Unlock()
	if err != nil {
		l.fail(err)
	}
}

func (n *netns) addAddr(device string, prefix netip.Prefix) error {
	link, err := n.nl.LinkByName(device)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := n.nl.AddrAdd(link, a); err != nil {
		return fmt.Errorf("add %v to %s in %s: %w", prefix, device, n.name, err)
	}
	return nil
}
