// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestFollowDevices: the programs are attached to new devices, and entries of removed devices
// are deleted. A new device with the name or index of a removed one counts as new.
func TestFollowDevices(t *testing.T) {
	byBothWays(t, func(n *node) {
		p := n.path()
		stop := n.run(p)
		n.veth("eth0", "192.0.2.1/24")
		n.want() // nothing is attached before Start
		p.Start()
		n.want("eth0", "address")
		eth1, _ := n.veth("eth1", "198.51.100.1/24")
		n.follows("eth0", "address", "eth1", "address")
		n.wantRun(eth1, frame)
		for range 3 {
			n.remove(eth1)
			eth1, _ = n.veth("eth1", "198.51.100.1/24")
			n.follows("eth0", "address", "eth1", "address")
			n.wantRun(eth1, frame)
		}
		n.remove(eth1)
		n.follows("eth0", "address")
		n.eventually("the entry in map devices is gone", func() bool { return n.sourceAddrsOf(eth1) == "" })
		// Another device gets the same index while no daemon runs.
		stop()
		eth1, _ = n.veth("eth1", "198.51.100.1/24")
		n.path().Start()
		n.remove(eth1)
		n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth2", Index: eth1}, PeerName: "eth2-peer"}))
		p = n.path()
		p.Start()
		n.want("eth0", "address")
		link, err := netlink.LinkByName("eth2")
		n.must(err)
		n.must(netlink.AddrAdd(link, addrOf(n.T, "198.51.100.1/24")))
		p.Start()
		n.want("eth0", "address", "eth2", "address")
		n.must(netlink.LinkSetDown(link))
		n.must(netlink.LinkSetName(link, "uplink"))
		p.Start()
		n.want("eth0", "address", "uplink", "address")
	})
}

// follows waits until exactly these are attached.
func (n *node) follows(pairs ...string) {
	n.Helper()
	want := n.wanted(pairs)
	n.eventually("attached is what should be", func() bool { return slices.Equal(n.attached(), want) })
}

// TestFollowAddresses: map devices has the address that the kernel would choose, when
// addresses, routes and the Node's addresses change. These also decide which devices are
// chosen.
func TestFollowAddresses(t *testing.T) {
	byBothWays(t, func(n *node) {
		eth0, _ := n.veth("eth0", "192.0.2.1/24")
		eth1, _ := n.veth("eth1")
		p := n.path()
		n.run(p)
		p.Start()
		n.want("eth0", "address")
		first, err := netlink.LinkByIndex(eth0)
		n.must(err)
		has := func(index int, want string) {
			n.Helper()
			n.eventually("the source is "+want, func() bool { return n.sourceAddrsOf(index) == want })
		}
		has(eth0, "192.0.2.1 -")
		n.must(netlink.AddrAdd(first, addrOf(n.T, "2001:db8::1/64")))
		has(eth0, "192.0.2.1 2001:db8::1")
		n.must(netlink.AddrAdd(first, addrOf(n.T, "198.51.100.9/24")))
		n.must(netlink.AddrDel(first, addrOf(n.T, "192.0.2.1/24")))
		has(eth0, "198.51.100.9 2001:db8::1")
		deprecated := addrOf(n.T, "2001:db8::1/64")
		deprecated.PreferedLft, deprecated.ValidLft = 0, 3600
		n.must(netlink.AddrReplace(first, deprecated))
		has(eth0, "198.51.100.9 -")

		second, err := netlink.LinkByIndex(eth1)
		n.must(err)
		n.must(netlink.AddrAdd(second, addrOf(n.T, "203.0.113.1/32")))
		gateway := &netlink.Route{LinkIndex: eth1, Dst: addrOf(n.T, "10.1.0.0/16").IPNet, Gw: addrOf(n.T, "203.0.113.254/32").IP,
			Flags: int(netlink.FLAG_ONLINK), Table: 100}
		n.must(netlink.RouteAdd(gateway))
		n.follows("eth0", "address", "eth1", "gateway")
		has(eth1, "203.0.113.1 -")
		n.must(netlink.RouteDel(gateway))
		n.follows("eth0", "address")
		has(eth1, "")
		p.SetNodeAddrs([]netip.Addr{netip.MustParseAddr("203.0.113.1")})
		n.follows("eth0", "address", "eth1", "node-address")
		p.SetNodeAddrs(nil)
		n.follows("eth0", "address")
	})
}

// TestMovedDevice: a device that was moved to another network namespace, and keeps its index
// there, is not mistaken for the device with that index here.
func TestMovedDevice(t *testing.T) {
	byBothWays(t, func(n *node) {
		eth0, _ := n.veth("eth0", "192.0.2.1/24")
		n.path().Start()
		away := n.awayNetns()
		defer unix.Close(away)
		n.must(netlink.LinkSetNsFd(linkOf(eth0), away))
		n.path().Start()
		n.want()
		n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", Index: eth0}, PeerName: "new-peer"}))
		here, err := netlink.LinkByIndex(eth0)
		n.must(err)
		n.must(netlink.LinkSetUp(here))
		n.must(netlink.AddrAdd(here, addrOf(n.T, "192.0.2.1/24")))
		n.path().Start()
		n.want("eth0", "address")
	})
}

// TestTwoNamespaces: two daemons, each with its own directory and network namespace, do not
// affect each other.
func TestTwoNamespaces(t *testing.T) {
	byBothWays(t, func(n *node) {
		n.veth("eth0", "192.0.2.1/24")
		n.path().Start()
		n.want("eth0", "address")
		n.Run("the other", func(t *testing.T) {
			other := newNode(t, n.noTCX)
			other.want()
			other.veth("eth0", "192.0.2.1/24")
			other.path().Start()
			other.want("eth0", "address")
			other.must(Detach(other.root))
			other.want()
		})
		n.want("eth0", "address")
	})
}
