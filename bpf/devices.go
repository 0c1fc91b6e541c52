// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// device has the properties of a network device that decide whether shunt serves its packets.
type device struct {
	index int
	name  string
	// kind is the kernel's name for the device's type (IFLA_INFO_KIND); "device" for hardware.
	kind   string
	header header
	// master is the index of the device that this one is a port of, or 0. bridged reports whether
	// the master receives the packets that arrive here, as bridges and bonds do.
	master  int
	bridged bool
	// addrs are in the kernel's order.
	addrs []deviceAddr
	// gateway reports whether a route by this device has a gateway, defaultRoute whether a
	// default route uses this device.
	gateway, defaultRoute bool
	// parent reports whether a VLAN, macvlan or ipvlan device is on top of this one.
	parent bool
}

// deviceAddr is an address of a device.
type deviceAddr struct {
	// prefix is the address with its prefix length, unmasked.
	prefix netip.Prefix
	// source reports whether the kernel may choose the address as the source of packets: it is of
	// global scope, and neither tentative nor deprecated nor temporary (IPv6) nor secondary
	// (IPv4).
	source bool
}

// header is the link-layer header of a device's packets.
type header uint8

const (
	headerUnknown header = iota
	headerEthernet
	headerNone // packets begin with the IP header
)

// Why is the reason for attaching to a device, or for not attaching: one word.
type Why string

// Reasons for attaching to a device. If several apply, the reason is the first one that choose
// and automatic check.
const (
	WhyAsked       Why = "asked"         // --devices names it
	WhyPod         Why = "pod"           // --pod-devices names it
	WhyTunnel      Why = "tunnel"        // its kind is one of tunnelKinds: a tunnel to other nodes
	WhyAddress     Why = "address"       // it has a global address with a prefix shorter than /32 or /128
	WhyGateway     Why = "gateway"       // a route by it has a gateway
	WhyDefault     Why = "default-route" // a default route without a gateway uses it
	WhyNodeAddress Why = "node-address"  // it has an address of the Node
	WhyLink        Why = "link"          // its kind is one of linkKinds, and nothing is on top of it
)

// Reasons for not attaching to a device.
const (
	whyLoopback  Why = "loopback"    // its packets never come from outside
	whyKind      Why = "kind"        // dummy, netkit: no packets from outside arrive there
	whyPort      Why = "port"        // its bridge or bond receives its packets
	whyHeader    Why = "link-header" // the programs can't parse its link-layer header
	whyNotAsked  Why = "not-asked"   // --devices names other devices
	whyParent    Why = "parent"      // the VLANs on top of it receive its packets
	whyNoNetwork Why = "no-network"  // no rule applies: a pod's veth, a virtual machine's tap
)

// decision is whether to attach to a device, and why.
type decision struct {
	attach bool
	why    Why
}

// pod reports whether packets that arrive at the device come from pods of this node.
func (d decision) pod() bool { return d.why == WhyPod }

// DeviceNames are the names of --devices or --pod-devices, with the wildcards of a shell.
type DeviceNames []string

// Validate returns an error for an element that is neither a device's name nor a pattern of
// names.
func (n DeviceNames) Validate() error {
	for _, p := range n {
		if _, err := path.Match(p, ""); err != nil || p == "" || strings.ContainsAny(p, "/ \t") {
			return fmt.Errorf("%q: neither a device's name nor a pattern of names (*, ?, [a-z])", p)
		}
	}
	return nil
}

func (n DeviceNames) match(name string) bool {
	return slices.ContainsFunc(n, func(p string) bool {
		ok, err := path.Match(p, name)
		return ok && err == nil
	})
}

// chooser decides which devices to attach to.
type chooser struct {
	// asked are the names of --devices, pods those of --pod-devices. If asked is empty, the rules
	// of automatic apply.
	asked, pods DeviceNames
	// node are the addresses of the Node object.
	node []netip.Addr
}

func (c chooser) choose(d device) decision {
	switch {
	case d.kind == kindLoopback:
		return decision{false, whyLoopback}
	case c.pods.match(d.name): // also a bridge's port: packets between two pods of a bridge pass only its ports
		return unlessUnreadable(d, WhyPod)
	case d.bridged:
		return decision{false, whyPort}
	case c.asked.match(d.name):
		return unlessUnreadable(d, WhyAsked)
	case len(c.asked) > 0:
		return decision{false, whyNotAsked}
	}
	return c.automatic(d)
}

func unlessUnreadable(d device, why Why) decision {
	if d.header == headerUnknown {
		return decision{false, whyHeader}
	}
	return decision{true, why}
}

// kindLoopback is the kind of the loopback device here: the kernel has no name for it.
const kindLoopback = "loopback"

// tunnelKinds are the kinds of tunnels to other nodes. Such a device is attached to, whatever its
// addresses. automatic handles a tun device in the same way, but not a tap device, whose other
// end is a virtual machine.
var tunnelKinds = []string{"vxlan", "geneve", "ipip", "sit", "gre", "gretap", "erspan", "ip6tnl",
	"ip6gre", "ip6gretap", "ip6erspan", "vti", "vti6", "xfrm", "wireguard"}

// linkKinds are the kinds of links to other machines: hardware ("device"), and devices that
// combine or divide hardware. Packets to load-balancer IPs may arrive where the node has no
// address, as another machine answers ARP for these IPs. Attaching to an unused device costs
// nothing, as it has no packets.
var linkKinds = []string{"device", "vlan", "bond", "team"}

// parentedKinds are the kinds of devices that are on top of another device and receive its
// packets.
var parentedKinds = []string{"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"}

// automatic decides if --devices is not given. A bridge's address is usually the gateway of its
// pods: so an address alone does not make a bridge an uplink.
func (c chooser) automatic(d device) decision {
	switch {
	case d.kind == "dummy" || d.kind == "netkit":
		return decision{false, whyKind}
	case slices.Contains(tunnelKinds, d.kind) || d.kind == "tuntap" && d.header == headerNone:
		return unlessUnreadable(d, WhyTunnel)
	case d.kind != "bridge" && slices.ContainsFunc(d.addrs, deviceAddr.ofNetwork):
		return unlessUnreadable(d, WhyAddress)
	case d.gateway:
		return unlessUnreadable(d, WhyGateway)
	case d.defaultRoute:
		return unlessUnreadable(d, WhyDefault)
	case slices.ContainsFunc(d.addrs, func(a deviceAddr) bool { return slices.Contains(c.node, a.prefix.Addr()) }):
		return unlessUnreadable(d, WhyNodeAddress)
	case slices.Contains(linkKinds, d.kind) && d.parent:
		return decision{false, whyParent}
	case slices.Contains(linkKinds, d.kind):
		return unlessUnreadable(d, WhyLink)
	}
	return decision{false, whyNoNetwork}
}

// ofNetwork reports whether the address has a subnet and can be a source. Uplinks have such
// addresses; the host end of a pod's veth has a single-host address or none.
func (a deviceAddr) ofNetwork() bool { return a.source && !a.prefix.IsSingleIP() }

// sources returns the SNAT address of each family for packets that leave by d, or an invalid
// address. Addresses of d come first, as in the kernel's choice for a host on the link. If d has
// none, as with unnumbered tunnels, addresses of the Node (node) are next, then those of other
// devices. Addresses of dummy devices come last: a DNS cache or another proxy may have addresses
// there that other nodes have too. devices are all devices in the kernel's order.
func sources(d device, devices []device, node []netip.Addr) (addr4, addr6 netip.Addr) {
	var byNode, dummies device
	candidates := []device{d, {}}
	for _, other := range devices {
		for _, a := range other.addrs {
			if slices.Contains(node, a.prefix.Addr()) {
				byNode.addrs = append(byNode.addrs, a)
			}
		}
		if other.kind == "dummy" {
			dummies.addrs = append(dummies.addrs, other.addrs...)
		} else {
			candidates = append(candidates, other)
		}
	}
	candidates[1] = byNode
	for _, c := range append(candidates, dummies) {
		if !addr4.IsValid() {
			addr4 = c.source(netip.Addr.Is4)
		}
		if !addr6.IsValid() {
			addr6 = c.source(netip.Addr.Is6)
		}
	}
	return addr4, addr6
}

// source returns the device's first address of a family that can be a source. Addresses with a
// subnet come before single-host ones: the kernel chooses the address nearest to the destination
// or its gateway. The order of the list alone is not sufficient, as the kernel lists the newest
// IPv6 address first.
func (d device) source(family func(netip.Addr) bool) netip.Addr {
	var alone netip.Addr
	for _, a := range d.addrs {
		switch addr := a.prefix.Addr(); {
		case !a.source || !family(addr):
		case a.ofNetwork():
			return addr
		case !alone.IsValid():
			alone = addr
		}
	}
	return alone
}
