// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"
)

// dev returns a device with addresses. Those with the prefix "-" can't be sources.
func dev(name, kind string, addrs ...string) device {
	d := device{index: len(name), name: name, kind: kind, header: headerEthernet}
	for _, a := range addrs {
		source := a[0] != '-'
		if !source {
			a = a[1:]
		}
		d.addrs = append(d.addrs, deviceAddr{netip.MustParsePrefix(a), source})
	}
	return d
}

// with returns a changed copy.
func (d device) with(change func(*device)) device { change(&d); return d }

func gateway(d *device)   { d.gateway = true }
func byDefault(d *device) { d.defaultRoute = true }
func isParent(d *device)  { d.parent = true }
func enslaved(d *device)  { d.master, d.bridged = 9, true }
func inVRF(d *device)     { d.master = 9 }
func noHeader(d *device)  { d.header = headerNone }
func oddHeader(d *device) { d.header = headerUnknown }

// TestChoose checks the rule on devices as they exist on nodes.
func TestChoose(t *testing.T) {
	node := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	automatic := chooser{node: node}
	asked := chooser{asked: DeviceNames{"eth[01]", "br-ex", "lo"}, pods: DeviceNames{"veth*", "cni0"}, node: node}
	for _, c := range []struct {
		what string
		by   chooser
		d    device
		want decision
	}{
		{"an uplink", automatic, dev("eth0", "device", "192.0.2.1/24"), decision{true, WhyAddress}},
		{"an uplink by IPv6 alone", automatic, dev("eth0", "device", "2001:db8::1/64"), decision{true, WhyAddress}},
		{"kind's uplink", automatic, dev("eth0", "veth", "172.18.0.2/16").with(gateway), decision{true, WhyAddress}},
		{"a pod's veth", automatic, dev("veth1", "veth"), decision{false, whyNoNetwork}},
		{"a pod's veth with a host's address", automatic, dev("veth1", "veth", "10.244.0.1/32", "fd00::1/128"), decision{false, whyNoNetwork}},
		{"a pod's veth with a link-local address", automatic, dev("veth1", "veth", "-fe80::1/64"), decision{false, whyNoNetwork}},
		{"an address that is not unique", automatic, dev("veth1", "veth", "-192.0.2.7/24"), decision{false, whyNoNetwork}},
		{"a cloud's /32 with a gateway", automatic, dev("ens4", "device", "10.128.0.2/32").with(gateway), decision{true, WhyGateway}},
		{"an uplink without addresses", automatic, dev("eth1", "device").with(gateway), decision{true, WhyGateway}},
		{"a /32 of the Node", automatic, dev("eth1", "device", "192.0.2.1/32"), decision{true, WhyNodeAddress}},
		{"the Node's address, deprecated", automatic, dev("eth1", "device", "-2001:db8::1/64"), decision{true, WhyNodeAddress}},
		{"a device without addresses", automatic, dev("eth3", "device"), decision{true, WhyLink}},
		{"a VLAN on which a router sends to load-balancer IPs", automatic, dev("eth0.9", "vlan"), decision{true, WhyLink}},
		{"a bond without addresses", automatic, dev("bond0", "bond"), decision{true, WhyLink}},
		{"a bond of VLANs", automatic, dev("bond0", "bond").with(isParent), decision{false, whyParent}},
		{"a device of VLANs, with an address", automatic, dev("eth0", "device", "192.0.2.1/24").with(isParent), decision{true, WhyAddress}},
		{"a VLAN in a bridge", automatic, dev("eth0.9", "vlan").with(enslaved), decision{false, whyPort}},
		{"a point-to-point default route", automatic, dev("ppp0", "ppp").with(noHeader).with(byDefault), decision{true, WhyDefault}},
		{"a veth with a default route", automatic, dev("eth0", "veth", "192.0.2.7/32").with(byDefault), decision{true, WhyDefault}},
		{"a dummy with a default route", automatic, dev("dummy0", "dummy").with(byDefault), decision{false, whyKind}},
		{"a VLAN", automatic, dev("eth0.7", "vlan", "192.0.2.1/24"), decision{true, WhyAddress}},
		{"a bond", automatic, dev("bond0", "bond", "192.0.2.1/24"), decision{true, WhyAddress}},
		{"a bond's port", automatic, dev("eth0", "device", "192.0.2.1/24").with(enslaved), decision{false, whyPort}},
		{"a port of a VRF", automatic, dev("eth0", "device", "192.0.2.1/24").with(inVRF), decision{true, WhyAddress}},
		{"a bridge of pods", automatic, dev("cni0", "bridge", "10.244.0.1/24"), decision{false, whyNoNetwork}},
		{"a bridge that is the uplink", automatic, dev("br0", "bridge", "192.0.2.9/24").with(gateway), decision{true, WhyGateway}},
		{"a bridge with the Node's address", automatic, dev("br0", "bridge", "192.0.2.1/24"), decision{true, WhyNodeAddress}},
		{"loopback", automatic, dev("lo", kindLoopback, "192.0.2.1/24").with(gateway), decision{false, whyLoopback}},
		{"dummy", automatic, dev("kube-ipvs0", "dummy", "192.0.2.1/24").with(gateway), decision{false, whyKind}},
		{"netkit", automatic, dev("nk0", "netkit", "192.0.2.1/24"), decision{false, whyKind}},
		{"flannel's tunnel", automatic, dev("flannel.1", "vxlan", "10.244.0.0/32"), decision{true, WhyTunnel}},
		{"a tunnel in a bridge", automatic, dev("vxlan7", "vxlan").with(enslaved), decision{false, whyPort}},
		{"Calico's tunnel", automatic, dev("tunl0", "ipip", "10.244.0.0/32").with(noHeader), decision{true, WhyTunnel}},
		{"WireGuard", automatic, dev("wg0", "wireguard").with(noHeader), decision{true, WhyTunnel}},
		{"a tun device", automatic, dev("tun0", "tuntap").with(noHeader), decision{true, WhyTunnel}},
		{"a virtual machine's tap", automatic, dev("tap0", "tuntap"), decision{false, whyNoNetwork}},
		{"InfiniBand", automatic, dev("ib0", "ipoib", "192.0.2.1/24").with(oddHeader), decision{false, whyHeader}},

		{"asked for", asked, dev("eth0", "device"), decision{true, WhyAsked}},
		{"a bridge, asked for", asked, dev("br-ex", "bridge"), decision{true, WhyAsked}},
		{"loopback, asked for", asked, dev("lo", kindLoopback), decision{false, whyLoopback}},
		{"a port, asked for", asked, dev("eth1", "device").with(enslaved), decision{false, whyPort}},
		{"not asked for", asked, dev("eth2", "device", "192.0.2.1/24").with(gateway), decision{false, whyNotAsked}},
		{"a tunnel, not asked for", asked, dev("flannel.1", "vxlan"), decision{false, whyNotAsked}},
		{"pods", asked, dev("veth7", "veth"), decision{true, WhyPod}},
		{"pods on a bridge", asked, dev("veth8", "veth").with(enslaved), decision{true, WhyPod}},
		{"a bridge of pods, asked for", asked, dev("cni0", "bridge", "10.244.0.1/24"), decision{true, WhyPod}},
		{"pods that can't be read", asked, dev("veth9", "veth").with(oddHeader), decision{false, whyHeader}},
		{"pods beside the rule", chooser{pods: DeviceNames{"eth0"}}, dev("eth0", "device", "192.0.2.1/24"), decision{true, WhyPod}},
	} {
		if got := c.by.choose(c.d); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.what, got, c.want)
		}
	}
}

func TestDeviceNames(t *testing.T) {
	for _, c := range []struct {
		names DeviceNames
		ok    bool
	}{
		{nil, true}, {DeviceNames{"eth0", "veth*", "en[op]?"}, true},
		{DeviceNames{""}, false}, {DeviceNames{"eth0", "eth["}, false}, {DeviceNames{"a/b"}, false}, {DeviceNames{"eth0 eth1"}, false},
	} {
		if err := c.names.Validate(); (err == nil) != c.ok {
			t.Errorf("%q: %v", c.names, err)
		}
	}
}

// TestSourceRanges: the device's own address comes first, then any other that the kernel may choose.
func TestSourceRanges(t *testing.T) {
	lo := dev("lo", kindLoopback, "-127.0.0.1/8", "-::1/128")
	eth0 := dev("eth0", "device", "192.0.2.1/24", "198.51.100.1/24", "-2001:db8::bad/64", "2001:db8::1/64", "-fe80::1/64")
	flannel := dev("flannel.1", "vxlan", "10.244.0.0/32", "-fe80::2/64")
	wg := dev("wg0", "wireguard")
	anycast := dev("lo", kindLoopback, "-127.0.0.1/8", "203.0.113.1/32")
	dummy := dev("dummy0", "dummy", "169.254.20.10/32", "fd00::10/128")
	inner := dev("eth0", "device", "10.0.0.1/24", "fd00::1/64")
	node := dev("eth1", "device", "203.0.113.9/24", "2001:db8:9::9/64")
	ofNode := []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:9::9")}
	added := dev("eth0", "device", "203.0.113.2/32", "192.0.2.1/24", "2001:db8:f::7/128", "2001:db8::1/64")
	for _, c := range []struct {
		what         string
		d            device
		all          []device
		want4, want6 string
	}{
		{"its own", eth0, []device{lo, eth0, flannel}, "192.0.2.1", "2001:db8::1"},
		{"a /32 counts, IPv6 is another's", flannel, []device{lo, eth0, flannel}, "10.244.0.0", "2001:db8::1"},
		{"an unnumbered tunnel", wg, []device{lo, eth0, flannel, wg}, "192.0.2.1", "2001:db8::1"},
		{"a global address of loopback", wg, []device{anycast, eth0, wg}, "203.0.113.1", "2001:db8::1"},
		{"one of a host was added", added, []device{lo, added}, "192.0.2.1", "2001:db8::1"},
		{"a dummy before the uplink", wg, []device{lo, dummy, eth0, wg}, "192.0.2.1", "2001:db8::1"},
		{"only a dummy has one", wg, []device{lo, dummy, wg}, "169.254.20.10", "fd00::10"},
		{"the Node's address", wg, []device{lo, inner, node, wg}, "203.0.113.9", "2001:db8:9::9"},
		{"nobody has one", wg, []device{lo, wg}, "invalid IP", "invalid IP"},
	} {
		v4, v6 := sources(c.d, c.all, ofNode)
		if v4.String() != c.want4 || v6.String() != c.want6 {
			t.Errorf("%s: %v and %v, want %s and %s", c.what, v4, v6, c.want4, c.want6)
		}
	}
}
