// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// device is a network device as far as it decides whether packets there are ours.
type device struct {
	index int
	name  string
	// kind is the kernel's word for what made it; "device" for hardware.
	kind   string
	header header
	// master is the index of the device that it is a port of, 0: of none; bridged
	// says that packets which arrive are then that one's, as of bridges and bonds.
	master  int
	bridged bool
	// addrs are in the kernel's order.
	addrs []deviceAddr
	// gateway: a route leads to a gateway behind it.
	gateway bool
}

// deviceAddr is an address of a device.
type deviceAddr struct {
	// prefix has the address itself, unmasked.
	prefix netip.Prefix
	// source: the kernel chooses it for packets on its own account. It is global,
	// neither tentative nor deprecated nor temporary nor (IPv4) a secondary one.
	source bool
}

// header is what a device's packets begin with.
type header uint8

const (
	headerUnknown header = iota
	headerEthernet
	headerNone // that of IP
)

// Why says in a word why a device is attached to, or is not.
type Why string

// Why a device is attached to: what has been asked for wins, then the first.
const (
	WhyAsked       Why = "asked"        // --devices names it
	WhyPod         Why = "pod"          // --pod-devices names it
	WhyTunnel      Why = "tunnel"       // it is of a kind that leads to other nodes
	WhyAddress     Why = "address"      // it has an address of a network, not only of a host
	WhyGateway     Why = "gateway"      // a route by a gateway leads there
	WhyNodeAddress Why = "node-address" // it has an address of the Node
)

// Why a device is not attached to.
const (
	whyLoopback  Why = "loopback"    // what is sent there was never outside
	whyKind      Why = "kind"        // dummy, netkit: no packets from outside arrive there
	whyPort      Why = "port"        // its packets are the bridge's or bond's
	whyHeader    Why = "link-header" // packets begin with what the programs can't read
	whyNotAsked  Why = "not-asked"   // --devices names others
	whyNoNetwork Why = "no-network"  // nothing of the above: a pod's veth, an unused device
)

// decision is what becomes of a device.
type decision struct {
	attach bool
	why    Why
}

// pod says that what arrives there comes from pods of this node.
func (d decision) pod() bool { return d.why == WhyPod }

// DeviceNames are the names that --devices or --pod-devices gives, with the
// wildcards of a shell.
type DeviceNames []string

// Validate refuses what can't be a device's name or a pattern of one.
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

// chooser decides which devices are attached to.
type chooser struct {
	// asked empty: by the rule of automatic.
	asked, pods DeviceNames
	// node has the addresses of the Node.
	node []netip.Addr
}

func (c chooser) choose(d device) decision {
	switch {
	case d.kind == kindLoopback:
		return decision{false, whyLoopback}
	case c.pods.match(d.name): // also a port: a bridge has what pods say to each other
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

// kindLoopback stands for the loopback device, which has no kind.
const kindLoopback = "loopback"

// tunnelKinds lead to other nodes, whatever their addresses; also tun, but no tap,
// which leads to a virtual machine.
var tunnelKinds = []string{"vxlan", "geneve", "ipip", "sit", "gre", "gretap", "erspan", "ip6tnl",
	"ip6gre", "ip6gretap", "ip6erspan", "vti", "vti6", "xfrm", "wireguard"}

// automatic is the rule where --devices is not given. A bridge's addresses are its
// pods' gateways, so that it takes more to make one an uplink.
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
	case slices.ContainsFunc(d.addrs, func(a deviceAddr) bool { return slices.Contains(c.node, a.prefix.Addr()) }):
		return unlessUnreadable(d, WhyNodeAddress)
	}
	return decision{false, whyNoNetwork}
}

// ofNetwork tells the addresses of uplinks from those of pods' veths, whose host
// end has a host's address or none.
func (a deviceAddr) ofNetwork() bool { return a.source && !a.prefix.IsSingleIP() }

// sources gives the addresses that packets which leave by the device may have for
// their source, per family: the one that the kernel itself would take for a host on
// the link, or of another device where the device has none, as of tunnels without
// numbers. devices are all, in the kernel's order. Not valid: there is none.
func sources(d device, devices []device) (addr4, addr6 netip.Addr) {
	addr4, addr6 = d.source(netip.Addr.Is4), d.source(netip.Addr.Is6)
	for _, other := range devices {
		if !addr4.IsValid() {
			addr4 = other.source(netip.Addr.Is4)
		}
		if !addr6.IsValid() {
			addr6 = other.source(netip.Addr.Is6)
		}
	}
	return addr4, addr6
}

// source gives the device's first address of a family that the kernel would take; one
// with a network before one of a host alone: the kernel goes by what the destination, or
// the gateway to it, is the nearest to, and lists the IPv6 address first that was added last.
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
