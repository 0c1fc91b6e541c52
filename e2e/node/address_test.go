// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// answers reports whether a client gets an answer within 200 ms.
func answers(from *lab.Pod, network string, dst netip.AddrPort) bool {
	return ask(from, network, dst, 200*time.Millisecond).Err == nil
}

// TestAddressAtRuntime: an address added to an interface takes node ports until it is
// removed, also if packets to it still arrive here afterwards.
func TestAddressAtRuntime(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near, c.far)...))
	for _, text := range []string{"203.0.113.7", "2001:db8::7"} {
		addr := netip.MustParseAddr(text)
		prefix := netip.PrefixFrom(addr, addr.BitLen())
		dst := rig.At(addr, rig.NodePortOf(1))
		c.outside.RouteVia(prefix, c.n1)
		for _, device := range []string{"eth0", "lo"} {
			if answers(c.outside, "tcp", dst) {
				t.Fatalf("%v answers before it is the node's", dst)
			}
			c.n1.AddAddr(device, prefix)
			rig.Eventually(t, fmt.Sprintf("%v on %s takes node ports", addr, device), func() bool { return answers(c.outside, "tcp", dst) })
			for _, network := range protocols {
				for range 6 {
					if a := ask(c.outside, network, dst, 0); a.Err != nil {
						t.Errorf("%v on %s by %s: %v", dst, device, network, a.Err)
					}
				}
			}
			c.n1.RemoveAddr(device, prefix)
			rig.Eventually(t, fmt.Sprintf("%v takes no node ports any more", addr), func() bool { return !answers(c.outside, "tcp", dst) })
			if answers(c.outside, "udp", dst) {
				t.Errorf("%v answers, which is nobody's", dst)
			}
		}
	}
}

// TestDeviceAtRuntime: a device that is added while the daemon runs serves like the others,
// at its own addresses and at those of services, also after it was removed and added again.
func TestDeviceAtRuntime(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near)...))
	c.apply(rig.Service("there", 2, rig.Everywhere(2)), rig.SlicesOf("there", rig.Up(c.far)...))
	for _, device := range []string{"eth1", "ens7"} {
		client := c.Client("by-" + device)
		c.n1.Link(client, device)
		for family := range families {
			dst := rig.At(c.n1.LinkAddrs()[family], rig.NodePortOf(1))
			rig.Eventually(t, "a client behind "+device+" is answered", func() bool { return answers(client, "tcp", dst) })
			for _, network := range protocols {
				wantAnswer(t, client, network, dst, c.near, client.LinkAddrs()[family])
				// The packets leave by another device than they arrived on.
				wantAnswer(t, client, network, rig.At(dst.Addr(), rig.NodePortOf(2)), c.far, nodeAddrs(c.n1)[family])
			}
		}
		client.Remove()
	}
}

// TestLoopbackFromOutside: a packet from outside to 127.0.0.1 or ::1 and a node port
// reaches no server, even if the kernel is configured to route such addresses.
func TestLoopbackFromOutside(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.UpAt(7000, c.near)...))
	server := c.near.Serve("udp", 7000)
	routed := func(value string) {
		err := c.n1.Do(func() error {
			return errors.Join(
				os.WriteFile("/proc/sys/net/ipv4/conf/all/route_localnet", []byte(value), 0o644),
				os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte(value), 0o644))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	count := func() uint64 {
		n, err := server.Count()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const packets = 20
	send := func(dst netip.Addr) {
		from := netip.PrefixFrom(c.outside.Addr4(), 32)
		if dst.Is6() {
			from = netip.PrefixFrom(c.outside.Addr6(), 128)
		}
		p := lab.Packets{Network: "udp", Dst: rig.At(dst, rig.NodePortOf(1)), From: from, Count: packets}
		if sent, err := c.outside.Flood(t.Context(), c.n1, p); err != nil || sent != packets {
			t.Fatalf("sent %d packets to %v: %v", sent, dst, err)
		}
	}
	for _, value := range []string{"0", "1"} {
		routed(value)
		for _, pair := range [][2]string{{"127.0.0.1", c.n1.Addr4().String()}, {"127.1.2.3", c.n1.Addr4().String()}, {"::1", c.n1.Addr6().String()}} {
			before := count()
			send(netip.MustParseAddr(pair[0]))
			send(netip.MustParseAddr(pair[1])) // sent last: when these have arrived, the earlier ones would have too
			rig.Eventually(t, "packets to the node's own address are served", func() bool { return count() >= before+packets })
			if n := count() - before; n != packets {
				t.Errorf("route_localnet %s: %d packets were served, of %d to %s and %d to %s", value, n, packets, pair[0], packets, pair[1])
			}
		}
	}
	a := ask(c.hostNear, "udp", netip.MustParseAddrPort("127.0.0.1:30001"), 0)
	if (a.Err == nil) != rig.KnowsOwnNetns() {
		t.Errorf("from the node itself: %v", a.Err)
	}
}

// TestOwnConnections: a process of the node connects from a source port with the number of
// a node port, and to another node's node port. Neither connection is translated.
func TestOwnConnections(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	serve(8000, c.outside, c.other)
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near)...))
	eachWay(func(network string, family int) {
		own := rig.At(nodeAddrs(c.n1)[family], rig.NodePortOf(1))
		servers := []netip.AddrPort{rig.At(c.outside.Addrs()[family], 8000), rig.At(c.other.Addrs()[family], 8000),
			rig.At(c.hostFar.Addrs()[family], hostPort)}
		held, err := c.hostNear.Hold(network, lab.HoldOptions{Count: 1, FirstPort: own.Port()}, servers...)
		if err != nil {
			t.Fatal(err)
		}
		heard := held.First
		for round := range 3 {
			if heard.Answered != 3 || heard.Servers["outside"] != 1 || heard.Servers["other"] != 1 || heard.Servers["host-far"] != 1 {
				t.Errorf("round %d: %s from %v: %+v, want each to answer", round, network, own, heard)
			}
			// Other clients are served at that port meanwhile.
			wantAnswer(t, c.outside, network, own, c.near, c.outside.Addrs()[family])
			if heard, err = held.Ask(); err != nil {
				t.Fatal(err)
			}
		}
		if err := held.Close(true); err != nil {
			t.Error(err)
		}
	})
}
