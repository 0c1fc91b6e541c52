// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"time"
)

// fragments returns a datagram in three fragments.
func (c *play) fragments(src, dst netip.AddrPort) []pkt {
	p := c.opens(src, dst).with(func(p *pkt) { p.payload = make([]byte, 1000) })
	return p.fragments(0x1234, 400, 800)
}

var fragmentCases = []packetCase{
	{name: "fragments in order", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		inner, wire := c.fragments(c.client, c.remote), c.fragments(c.source(), c.remote)
		for i, p := range c.fragments(c.client, c.external) {
			reason := "translated"
			if i > 0 {
				reason = "flow_kept"
			}
			c.arrives(p).becomes(inner[i], reason)
		}
		for i, p := range inner {
			c.leaves(p).becomes(wire[i], "source_translated")
		}
		inner = c.fragments(c.remote, c.client)
		for i, p := range c.fragments(c.remote, c.source()) {
			c.arrives(p).becomes(inner[i], "source_restored")
		}
		outer := c.fragments(c.external, c.client)
		for i, p := range inner {
			c.leaves(p).becomes(outer[i], "reply_restored")
		}
	}},
	{name: "fragments before the first", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p, want := c.fragments(c.client, c.external), c.fragments(c.client, c.local)
		c.arrives(p[2]).dropped("fragment_unknown")
		c.arrives(p[0]).becomes(want[0], "translated")
		c.arrives(p[2]).becomes(want[2], "flow_kept")
		c.arrives(p[1]).becomes(want[1], "flow_kept")
		// At the node's address it may be any datagram. For other addresses it belongs to
		// no flow.
		c.arrives(c.fragments(c.client, c.node)[1]).passes("fragment_passed")
		c.arrives(c.fragments(c.client, at(c.clusterIP, 9))[1]).dropped("fragment_unknown")
		c.arrives(c.fragments(c.client, c.other)[1]).passes("fragment_passed")
		c.leaves(c.accepts(c.local, c.client)).becomes(c.accepts(c.external, c.client), "reply_restored")
		p, want = c.fragments(c.local, c.client), c.fragments(c.external, c.client)
		c.leaves(p[1]).passes("fragment_passed")
		c.leaves(p[0]).becomes(want[0], "reply_restored")
		c.leaves(p[1]).becomes(want[1], "reply_restored")
		c.leaves(p[2]).becomes(want[2], "reply_restored")
	}},
	{name: "fragments of what is not ours", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p := c.fragments(c.client, at(c.node, 9))
		c.arrives(p[0]).passes("no_frontend")
		c.arrives(p[1]).passes("fragment_passed")
		p = c.fragments(c.client, at(c.external, 9))
		c.arrives(p[0]).passes("no_frontend")
		c.arrives(p[1]).dropped("fragment_unknown")
		p = c.fragments(c.client, c.other)
		c.leaves(p[0]).passes("egress_passed")
		c.leaves(p[1]).passes("egress_passed")
	}},
	{name: "fragments of one id, of two datagrams", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p, want := c.fragments(c.client, c.external), c.fragments(c.client, c.local)
		c.arrives(p[0]).becomes(want[0], "translated")
		c.arrives(c.fragments(c.other, c.external)[1]).dropped("fragment_unknown")
		c.arrives(c.fragments(c.client, c.loadBalancer)[1]).dropped("fragment_unknown")
		c.arrives(p[1].with(func(p *pkt) { p.id++ })).dropped("fragment_unknown")
		c.leaves(p[1]).passes("fragment_passed")
		c.arrives(p[1]).becomes(want[1], "flow_kept")
	}},
	{name: "fragments of an id that was used long before", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p, want := c.fragments(c.client, c.external), c.fragments(c.client, c.local)
		c.arrives(p[0]).becomes(want[0], "translated")
		c.rig.age(fragmentAge - slack)
		c.arrives(p[0]).becomes(want[0], "translated") // the flow has expired before
		c.arrives(p[1]).becomes(want[1], "flow_kept")
		c.rig.age(fragmentAge + time.Second)
		c.arrives(p[1]).dropped("fragment_unknown")
		c.arrives(p[0]).becomes(want[0], "translated")
		c.arrives(p[1]).becomes(want[1], "flow_kept")
		c.leaves(c.fragments(c.local, c.client)[0]).becomes(c.fragments(c.external, c.client)[0], "reply_restored")
		c.rig.age(fragmentAge + time.Second)
		c.leaves(c.fragments(c.local, c.client)[1]).passes("fragment_passed")
	}},
	{name: "the whole packet in one fragment", family: 6, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p := c.opens(c.client, c.external).fragments(7)[0]
		c.arrives(p).becomes(p.as(c.client, c.local), "translated")
	}},
	{name: "a fragment with an extension header before the ports", family: 6, proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		fragments := func(src, dst netip.AddrPort) []pkt {
			p := udp(src, dst, string(make([]byte, 100)))
			body := append([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, p.body()...)
			return pkt{src: src, dst: dst, proto: protoDest, payload: body}.fragments(8, 48)
		}
		p, want := fragments(c.client, c.external), fragments(c.client, c.local)
		c.arrives(p[0]).becomes(want[0], "translated")
		c.arrives(p[1]).becomes(want[1], "flow_kept")
	}},
	{name: "fragments of other protocols", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p := icmpError(c.client.Addr(), c.node.Addr(), 8, 0, 1, make([]byte, 200))
		if c.v6 {
			p.icmpType = 128
		}
		f := p.fragments(3, 80)
		c.arrives(f[0]).passes("protocol")
		c.arrives(f[1]).passes("fragment_passed")
		c.leaves(f[0]).passes("protocol")
		c.leaves(f[1]).passes("fragment_passed")
	}},
}
