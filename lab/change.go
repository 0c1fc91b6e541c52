// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Changes to a topology in use.

// Route describes a route.
type Route struct {
	Dst netip.Prefix
	// Via is the next hop, a node on the wire. Nil means that the destination is on the
	// link itself.
	Via *Node
	// Tunnel routes to Via's pods through the tunnel of the destination's family instead.
	Tunnel bool
	// Device is the output device. Empty means eth0, the wire's.
	Device string
	// MTU is the route's MTU in bytes: a router with such a route reports it to senders of
	// larger packets. 0 means the device's MTU.
	MTU int
}

// SetRoute adds or replaces a route in the pod's network namespace: the node's, for one of
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

// DeleteRoute deletes a route that SetRoute made.
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

// AddAddr adds an address to a device of the node.
func (n *Node) AddAddr(device string, addr netip.Prefix) {
	n.lab.t.Helper()
	n.change(fmt.Sprintf("give %s the address %v", device, addr), func() error { return n.space.addAddr(device, addr) })
}

// RemoveAddr removes an address from a device of the node.
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

// Link connects the node and an outside client by another veth pair beside the wire. Its
// device has the given name at both ends. The node's addresses are 192.168.101.<n> and
// fd00:192:168:101::<n>; the client's have its number on the wire.
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

// LinkAddrs returns the node's addresses on links, IPv4 first. See Link.
func (n *Node) LinkAddrs() []netip.Addr {
	p := onLink(n.number)
	return []netip.Addr{p.v4.Addr(), p.v6.Addr()}
}

// linkAddr returns a client's addresses on links.
func (p *Pod) linkAddr() pair { return onLink(int(p.addrs.v4.Addr().As4()[3])) }

// LinkAddrs returns a client's addresses on links, IPv4 first. See Node.Link.
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
