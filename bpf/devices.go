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
	// master is the index of the device that this one is a port of; 0: of none. bridged:
	// packets that arrive here belong to the master, as with bridges and bonds.
	master  int
	bridged bool
	// addrs are in the kernel's order.
	addrs []deviceAddr
	// gateway: a route leads through this device to a gateway. defaultRoute: a default route leads
	// through it.
	gateway, defaultRoute bool
	// parent: a VLAN, macvlan or ipvlan device is on top of it.
	parent bool
}

// deviceAddr is an address of a device.
type deviceAddr struct {
	// prefix is the address with its prefix length, unmasked.
	prefix netip.Prefix
	// source: the kernel may choose it as the source of packets. It is of global scope, neither
	// tentative nor deprecated nor temporary (IPv6) nor secondary (IPv4).
	source bool
}

// header is the link-layer header of a device's packets.
type header uint8

const (
	headerUnknown header = iota
	headerEthernet
	headerNone // packets begin with the IP header
)

// Why is the reason why a device is attached to, or is not: one word.
type Why string

// Why a device is attached to. Where several apply, it is the first that choose and automatic
// check.
const (
	WhyAsked       Why = "asked"         // --devices names it
	WhyPod         Why = "pod"           // --pod-devices names it
	WhyTunnel      Why = "tunnel"        // its kind is one of tunnelKinds: it leads to other nodes
	WhyAddress     Why = "address"       // it has a global address with a prefix shorter than /32 or /128
	WhyGateway     Why = "gateway"       // a route leads through it to a gateway
	WhyDefault     Why = "default-route" // a default route leads through it, without a gateway
	WhyNodeAddress Why = "node-address"  // it has an address of the Node
	WhyLink        Why = "link"          // its kind is one of linkKinds, and nothing is on top of it
)

// Why a device is not attached to.
const (
	whyLoopback  Why = "loopback"    // its packets never come from outside
	whyKind      Why = "kind"        // dummy, netkit: no packets from outside arrive there
	whyPort      Why = "port"        // its packets belong to its bridge or bond
	whyHeader    Why = "link-header" // the programs can't parse its link-layer header
	whyNotAsked  Why = "not-asked"   // --devices names others
	whyParent    Why = "parent"      // its packets belong to the VLANs on top of it
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

// Validate returns an error for what can't be a device's name or a pattern of names.
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
	// asked are --devices, pods --pod-devices. Without asked the rules of automatic apply.
	asked, pods DeviceNames
	// node are the addresses of the Node object.
	node []netip.Addr
}

func (c chooser) choose(d device) decision {
	switch {
	case d.kind == kindLoopback:
		return decision{false, whyLoopback}
	case c.pods.match(d.name): // also a bridge's port: only ports see what its pods send to each other
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

// tunnelKinds are the kinds that lead to other nodes, whatever their addresses. A tun device
// counts too, but not a tap, which leads to a virtual machine.
var tunnelKinds = []string{"vxlan", "geneve", "ipip", "sit", "gre", "gretap", "erspan", "ip6tnl",
	"ip6gre", "ip6gretap", "ip6erspan", "vti", "vti6", "xfrm", "wireguard"}

// linkKinds are the kinds of links to other machines: hardware ("device"), and what is made of it.
// Load-balancer IPs may come in where the node has no address, as another machine answers ARP for
// them. A device that is not used costs nothing, as it has no packets.
var linkKinds = []string{"device", "vlan", "bond", "team"}

// parentedKinds are the kinds of devices that are on top of another one and take its packets.
var parentedKinds = []string{"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"}

// automatic decides where --devices is not given. A bridge's address is usually the gateway of
// its pods, so that an address alone does not make a bridge an uplink.
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

// sources returns the SNAT address of each family for packets that leave by d: d's own, as the
// kernel would choose it for a host on the link. Where d has none, as with unnumbered tunnels, it
// is one of the Node's, node, or else another device's. Addresses of dummy devices come last: a
// DNS cache or another proxy may keep addresses there that other nodes have too. devices are all
// devices in the kernel's order. An invalid address: there is none.
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

// source returns the device's first address of a family that can be a source. An address with a
// subnet comes before a single-host one: the kernel chooses the address nearest to the
// destination or its gateway, and lists the newest IPv6 address first.
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
