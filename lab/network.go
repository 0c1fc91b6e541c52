// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Network selects how a lab's pods are connected. The zero value connects them as the CNI
// plugin "ptp" with plain routes does: a host route per pod, a route per node.
type Network struct {
	// VXLAN carries packets to other nodes' pods in a tunnel, as flannel does: flannel.1
	// over IPv4 and flannel-v6.1 over IPv6. Each has the first address of the node's range
	// and learns nothing. The MTU of pods' devices is 50 bytes smaller.
	VXLAN bool
	// Bridge connects a node's pods by a bridge, cni0, which has the gateway's address.
	Bridge bool
}

// Use sets the Network of the nodes that are created afterwards. It must be called before the
// first node is created.
func (l *Lab) Use(n Network) {
	l.t.Helper()
	l.mu.Lock()
	made := len(l.nodes)
	if made == 0 {
		l.network = n
	}
	l.mu.Unlock()
	if made > 0 {
		l.fail(errors.New("the network is chosen before the first node is made"))
	}
}

const (
	cniBridge = "cni0"
	// vxlanPort and vxlanID are flannel's.
	vxlanPort = 8472
	vxlanID   = 1
	wireMTU   = 1500
	// vxlanHeader and vxlanHeader6 are the bytes by which a tunnel reduces the MTU: the
	// headers of Ethernet, VXLAN, UDP and IP.
	vxlanHeader  = 50
	vxlanHeader6 = 70
)

// tunnel is one VXLAN device of a node.
type tunnel struct {
	name string
	node int
	six  bool // IPv6 in IPv6
}

func tunnelsOf(node int) []tunnel {
	return []tunnel{{"flannel.1", node, false}, {"flannel-v6.1", node, true}}
}

func (t tunnel) pick(p pair) netip.Prefix {
	if t.six {
		return p.v6
	}
	return p.v4
}

// addr returns the first address of the node's pod range.
func (t tunnel) addr() netip.Addr { return t.pick(podCIDR(t.node)).Addr() }

func (t tunnel) mac() net.HardwareAddr {
	family := byte(4)
	if t.six {
		family = 6
	}
	return net.HardwareAddr{2, 0, 10, 244, family, byte(t.node)}
}

// makeTunnels adds the node's VXLAN devices.
func (n *Node) makeTunnels() error {
	uplink, err := n.space.nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, t := range tunnelsOf(n.number) {
		mtu := wireMTU - vxlanHeader
		if t.six {
			mtu = wireMTU - vxlanHeader6
		}
		device := &netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: t.name, MTU: mtu, HardwareAddr: t.mac()},
			VxlanId:   vxlanID, VtepDevIndex: uplink.Attrs().Index, Port: vxlanPort,
			SrcAddr: t.pick(onWire(n.number)).Addr().AsSlice(),
		}
		if err := n.space.nl.LinkAdd(device); err != nil {
			return fmt.Errorf("make %s: %w", t.name, err)
		}
		if err := n.space.up(t.name); err != nil {
			return err
		}
		if err := n.space.addAddr(t.name, netip.PrefixFrom(t.addr(), t.addr().BitLen())); err != nil {
			return err
		}
	}
	return nil
}

// tunnelTo routes traffic for the other node's pods through the tunnels. It adds the neighbour
// and forwarding entries, since learning is disabled for the tunnels.
func (n *Node) tunnelTo(other *Node) error {
	for _, t := range tunnelsOf(other.number) {
		device, err := n.space.nl.LinkByName(t.name)
		if err != nil {
			return err
		}
		index := device.Attrs().Index
		steps := errors.Join(
			n.space.nl.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT,
				IP: t.addr().AsSlice(), HardwareAddr: t.mac()}),
			n.space.nl.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE,
				Flags: netlink.NTF_SELF, IP: t.pick(onWire(other.number)).Addr().AsSlice(), HardwareAddr: t.mac()}),
			n.space.nl.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipNet(t.pick(podCIDR(other.number))),
				Gw: t.addr().AsSlice(), Flags: int(netlink.FLAG_ONLINK)}),
		)
		if steps != nil {
			return fmt.Errorf("lead %s to node %s: %w", t.name, other.name, steps)
		}
	}
	return nil
}

// makeBridge adds the bridge of the node's pods.
func (n *Node) makeBridge() error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: cniBridge, MTU: n.podMTU()}}
	if err := n.space.nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make %s: %w", cniBridge, err)
	}
	return n.space.address(cniBridge, n.gateway())
}

// gateway returns the node's addresses towards its pods, with their prefix length.
func (n *Node) gateway() pair { return n.onPodNet(podAddr(n.number, 1)) }

// onPodNet returns the addresses with the prefix length of the pods' network: a bridge is
// one link, and each veth pair is its own.
func (n *Node) onPodNet(p pair) pair {
	if !n.lab.network.Bridge {
		return p
	}
	c := podCIDR(n.number)
	return pair{netip.PrefixFrom(p.v4.Addr(), c.v4.Bits()), netip.PrefixFrom(p.v6.Addr(), c.v6.Bits())}
}

func (n *Node) podMTU() int {
	if n.lab.network.VXLAN {
		return wireMTU - vxlanHeader
	}
	return wireMTU
}

// joinPod connects a pod to its node, in both directions.
func (n *Node) joinPod(p *Pod) error {
	if err := connect(n.space, p.veth, p.space, "eth0"); err != nil {
		return err
	}
	if n.lab.network.VXLAN {
		if err := errors.Join(n.space.mtu(p.veth, n.podMTU()), p.space.mtu("eth0", n.podMTU())); err != nil {
			return err
		}
	}
	if err := p.space.address("eth0", n.onPodNet(p.addrs)); err != nil {
		return err
	}
	device := p.veth
	join := n.routePod
	if n.lab.network.Bridge {
		device, join = cniBridge, n.bridgePod
	}
	if err := join(p); err != nil {
		return err
	}
	gateway := n.gateway()
	if err := anywhere.each(func(dst netip.Prefix) error { return p.space.route(dst, gateway.of(dst), "eth0") }); err != nil {
		return err
	}
	return errors.Join(n.space.settle(device, gateway.v6.Addr()), p.space.settle("eth0", p.addrs.v6.Addr()))
}

// routePod adds the two host routes of a veth pair.
func (n *Node) routePod(p *Pod) error {
	gateway := n.gateway()
	if err := n.space.address(p.veth, gateway); err != nil {
		return err
	}
	return p.addrs.each(func(own netip.Prefix) error {
		return errors.Join(
			n.space.route(own, netip.Addr{}, p.veth),
			p.space.route(gateway.sameFamily(own), netip.Addr{}, "eth0"),
		)
	})
}

// bridgePod makes the pod's device a port of the bridge in hairpin mode: a pod may reach
// itself by a service's address.
func (n *Node) bridgePod(p *Pod) error {
	bridge, err := n.space.nl.LinkByName(cniBridge)
	if err != nil {
		return err
	}
	port, err := n.space.nl.LinkByName(p.veth)
	if err != nil {
		return err
	}
	if err := n.space.nl.LinkSetMaster(port, bridge); err != nil {
		return err
	}
	return n.space.nl.LinkSetHairpin(port, true)
}

func (n *netns) mtu(device string, bytes int) error {
	link, err := n.nl.LinkByName(device)
	if err == nil {
		err = n.nl.LinkSetMTU(link, bytes)
	}
	if err != nil {
		return fmt.Errorf("set the MTU of %s in %s: %w", device, n.name, err)
	}
	return nil
}
