// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"time"

	"shunt/maps"
)

// servedBy runs packets through one kind of frontend to one backend: from the first one to
// the reply, and on.
func servedBy(kind maps.FrontendKind, backend func(plan) netip.AddrPort) func(*play) {
	return func(c *play) {
		frontend, b := c.kinds()[kind], backend(c.plan)
		c.serve(c.world, c.proto, 1, b)
		c.load()
		c.arrives(c.opens(c.client, frontend)).becomes(c.opens(c.client, b), "translated")
		if b == c.remote {
			c.leaves(c.opens(c.client, b)).becomes(c.opens(c.source(), b), "source_translated")
			c.arrives(c.continues(b, c.source())).becomes(c.continues(b, c.client), "source_restored")
		} else {
			c.leaves(c.opens(c.client, b)).passes("source_kept")
		}
		c.leaves(c.accepts(b, c.client)).becomes(c.accepts(frontend, c.client), "reply_restored")
		if n := len(c.rig.flows(confirmed)); n != 0 {
			c.Errorf("%d entries are confirmed before the client has answered", n)
		}
		c.arrives(c.continues(c.client, frontend)).becomes(c.continues(c.client, b), "flow_kept")
		c.recorded(b == c.remote)
		if b == c.remote {
			c.leaves(c.continues(c.client, b)).becomes(c.continues(c.source(), b), "source_translated")
			c.arrives(c.continues(b, c.source())).becomes(c.continues(b, c.client), "source_restored")
		}
		c.leaves(c.continues(b, c.client)).becomes(c.continues(frontend, c.client), "reply_restored")
	}
}

// recorded checks that there is one confirmed flow with all its entries.
func (c *play) recorded(remote bool) {
	c.Helper()
	want := 2
	if remote {
		want = 3
	}
	flows := c.rig.flows(confirmed)
	if len(flows) != want || len(c.rig.flows(fresh)) != 0 {
		c.Fatalf("%d confirmed entries and %d others, want %d and 0: %v", len(flows), len(c.rig.flows(fresh)), want, flows)
	}
	for k, f := range flows {
		if f.flags&maps.FlowConfirmed == 0 || f.flags&maps.FlowSNAT != 0 != remote {
			c.Errorf("entry %v has flags %#x", k, f.flags)
		}
		if age := c.rig.now() - f.used; age < 0 || age > int64(time.Minute) {
			c.Errorf("entry %v was used %v ago", k, time.Duration(age))
		}
	}
	if n := c.rig.kernel.Connections(10); n != 1 {
		c.Errorf("the backend has %d connections counted, want 1", n)
	}
}

func localPod(p plan) netip.AddrPort  { return p.local }
func remotePod(p plan) netip.AddrPort { return p.remote }
func hostPod(p plan) netip.AddrPort   { return p.host }

var pathCases = []packetCase{
	{name: "ClusterIP, local pod", steps: servedBy(maps.ClusterIP, localPod)},
	{name: "ClusterIP, pod elsewhere", steps: servedBy(maps.ClusterIP, remotePod)},
	{name: "ClusterIP, hostNetwork", steps: servedBy(maps.ClusterIP, hostPod)},
	{name: "NodePort, local pod", steps: servedBy(maps.NodePort, localPod)},
	{name: "NodePort, pod elsewhere", steps: servedBy(maps.NodePort, remotePod)},
	{name: "NodePort, hostNetwork", steps: servedBy(maps.NodePort, hostPod)},
	{name: "LoadBalancerIP, local pod", steps: servedBy(maps.LoadBalancerIP, localPod)},
	{name: "LoadBalancerIP, pod elsewhere", steps: servedBy(maps.LoadBalancerIP, remotePod)},
	{name: "LoadBalancerIP, hostNetwork", steps: servedBy(maps.LoadBalancerIP, hostPod)},
	{name: "ExternalIP, local pod", steps: servedBy(maps.ExternalIP, localPod)},
	{name: "ExternalIP, pod elsewhere", steps: servedBy(maps.ExternalIP, remotePod)},
	{name: "ExternalIP, hostNetwork", steps: servedBy(maps.ExternalIP, hostPod)},

	{name: "not ours", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.arrives(c.opens(c.client, c.other)).passes("no_frontend")
		c.leaves(c.opens(c.client, c.other)).passes("egress_passed")
		// Ports without a service, at addresses that have other ports.
		c.arrives(c.opens(c.client, at(c.node, 9))).passes("no_frontend")
		c.arrives(c.opens(c.client, at(c.external, 9))).passes("no_frontend")
		if len(c.rig.flows(fresh)) != 0 {
			c.Errorf("flows of nobody: %v", c.rig.flows(fresh))
		}
	}},
	{name: "the other protocol's frontend", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, protoTCP, 1, c.local)
		c.load()
		c.arrives(c.opens(c.client, c.external)).passes("no_frontend")
		c.arrives(tcp(c.client, c.external, syn)).becomes(tcp(c.client, c.local, syn), "translated")
	}},
	{name: "loopback is no frontend from outside", steps: func(c *play) {
		lo := netip.MustParseAddr("127.0.0.1")
		if c.v6 {
			lo = netip.IPv6Loopback()
		}
		c.serve(c.world, c.proto, 1, c.local)
		c.world.nodeAddrs[lo] = true
		c.load()
		c.arrives(c.opens(c.client, netip.AddrPortFrom(lo, c.node.Port()))).passes("no_frontend")
	}},
	{name: "a backend is its own client", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		client := at(c.local, 555)
		c.arrives(c.opens(client, c.clusterIP)).becomes(c.opens(client, c.local), "translated")
		c.leaves(c.opens(client, c.local)).becomes(c.opens(c.source(), c.local), "source_translated")
		c.arrives(c.continues(c.local, c.source())).becomes(c.continues(c.local, client), "source_restored")
		c.leaves(c.accepts(c.local, client)).becomes(c.accepts(c.clusterIP, client), "reply_restored")
	}},
	{name: "a backend is its own client, from the very port", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		inner := at(c.local, firstPort)
		c.arrives(c.opens(c.local, c.clusterIP)).becomes(c.opens(inner, c.local), "translated")
		c.leaves(c.opens(inner, c.local)).becomes(c.opens(c.source(), c.local), "source_translated")
		c.arrives(c.continues(c.local, c.source())).becomes(c.continues(c.local, inner), "source_restored")
		c.leaves(c.accepts(c.local, inner)).becomes(c.accepts(c.clusterIP, c.local), "reply_restored")
	}},
	{name: "a pod of this node, backend elsewhere", config: podDevice, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		client := at(c.local, 555)
		c.arrives(c.opens(client, c.clusterIP)).becomes(c.opens(client, c.remote), "translated")
		c.leaves(c.opens(client, c.remote)).passes("source_kept")
		c.leaves(c.accepts(c.remote, client)).becomes(c.accepts(c.clusterIP, client), "reply_restored")
	}},
	{name: "the source by the route, where the kernel tells", routed: true, ethernet: true, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.world.devices[c.rig.netns.ifindex] = c.world.devices[loopback]
		c.load()
		source := netip.AddrPortFrom(c.rig.netns.addr4, firstPort)
		if c.v6 {
			source = netip.AddrPortFrom(c.rig.netns.addr6, firstPort)
		}
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.remote), "translated")
		s := c.leaves(c.opens(c.client, c.remote))
		if v, _ := readPacket(s.out, 0); v.src == newEnd(c.source()) {
			source = c.source() // before 6.7, the kernel does not return the source
		}
		s.becomes(c.opens(source, c.remote), "source_translated")
		c.arrives(c.continues(c.remote, source)).becomes(c.continues(c.remote, c.client), "source_restored")
		// No other connection may begin from there, and there is no other port for it.
		c.leaves(c.opens(source, c.remote)).dropped("ports_exhausted")
		c.leaves(c.opens(source, c.other)).passes("egress_passed")
	}},
	{name: "a device without an address", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.world.devices = map[uint32][2]netip.Addr{}
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.remote), "translated")
		c.leaves(c.opens(c.client, c.remote)).dropped("no_node_address")
		// An address of the other family does not help.
		a := [2]netip.Addr{c.wire, c.wire}
		a[map[bool]int{false: 0, true: 1}[c.v6]] = netip.Addr{}
		c.world.devices[loopback] = a
		c.load()
		c.leaves(c.opens(c.client, c.remote)).dropped("no_node_address")
	}},
}
