// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"time"
)

// pieces returns a datagram in three fragments.
func (c *play) pieces(src, dst netip.AddrPort) []pkt {
	p := c.opens(src, dst).with(func(p *pkt) { p.payload = make([]byte, 1000) })
	return p.fragments(0x1234, 400, 800)
}

var fragmentCases = []packetCase{
	{name: "pieces in order", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		inner, wire := c.pieces(c.client, c.remote), c.pieces(c.source(), c.remote)
		for i, p := range c.pieces(c.client, c.external) {
			reason := "translated"
			if i > 0 {
				reason = "flow_kept"
			}
			c.arrives(p).becomes(inner[i], reason)
		}
		for i, p := range inner {
			c.leaves(p).becomes(wire[i], "source_translated")
		}
		inner = c.pieces(c.remote, c.client)
		for i, p := range c.pieces(c.remote, c.source()) {
			c.arrives(p).becomes(inner[i], "source_restored")
		}
		outer := c.pieces(c.external, c.client)
		for i, p := range inner {
			c.leaves(p).becomes(outer[i], "reply_restored")
		}
	}},
	{name: "pieces before the first", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p, want := c.pieces(c.client, c.external), c.pieces(c.client, c.local)
		c.arrives(p[2]).dropped("fragment_unknown")
		c.arrives(p[0]).becomes(want[0], "translated")
		c.arrives(p[2]).becomes(want[2], "flow_kept")
		c.arrives(p[1]).becomes(want[1], "flow_kept")
		// At the node's address it may be any datagram. For other addresses it belongs to
		// no flow.
		c.arrives(c.pieces(c.client, c.node)[1]).passes("fragment_passed")
		c.arrives(c.pieces(c.client, at(c.clusterIP, 9))[1]).dropped("fragment_unknown")
		c.arrives(c.pieces(c.client, c.other)[1]).passes("fragment_passed")
		c.leaves(c.accepts(c.local, c.client)).becomes(c.accepts(c.external, c.client), "reply_restored")
		p, want = c.pieces(c.local, c.client), c.pieces(c.external, c.client)
		c.leaves(p[1]).passes("fragment_passed")
		c.leaves(p[0]).becomes(want[0], "reply_restored")
		c.leaves(p[1]).becomes(want[1], "reply_restored")
		c.leaves(p[2]).becomes(want[2], "reply_restored")
	}},
	{name: "pieces of what is not ours", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p := c.pieces(c.client, at(c.node, 9))
		c.arrives(p[0]).passes("no_frontend")
		c.arrives(p[1]).passes("fragment_passed")
		p = c.pieces(c.client, at(c.external, 9))
		c.arrives(p[0]).passes("no_frontend")
		c.arrives(p[1]).dropped("fragment_unknown")
		p = c.pieces(c.client, c.other)
		c.leaves(p[0]).passes("egress_passed")
		c.leaves(p[1]).passes("egress_passed")
	}},
	{name: "pieces of one id, of two datagrams", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p, want := c.pieces(c.client, c.external), c.pieces(c.client, c.local)
		c.arrives(p[0]).becomes(want[0], "translated")
		c.arrives(c.pieces(c.other, c.external)[1]).dropped("fragment_unknown")
		c.arrives(c.pieces(c.client, c.loadBalancer)[1]).dropped("fragment_unknown")
		c.arrives(p[1].with(func(p *pkt) { p.id++ })).dropped("fragment_unknown")
		c.leaves(p[1]).passes("fragment_passed")
		c.arrives(p[1]).becomes(want[1], "flow_kept")
	}},
	{name: "pieces of an id that was used long before", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p, want := c.pieces(c.client, c.external), c.pieces(c.client, c.local)
		c.arrives(p[0]).becomes(want[0], "translated")
		c.rig.age(pieceAge - slack)
		c.arrives(p[0]).becomes(want[0], "translated") // the flow has expired before
		c.arrives(p[1]).becomes(want[1], "flow_kept")
		c.rig.age(pieceAge + time.Second)
		c.arrives(p[1]).dropped("fragment_unknown")
		c.arrives(p[0]).becomes(want[0], "translated")
		c.arrives(p[1]).becomes(want[1], "flow_kept")
		c.leaves(c.pieces(c.local, c.client)[0]).becomes(c.pieces(c.external, c.client)[0], "reply_restored")
		c.rig.age(pieceAge + time.Second)
		c.leaves(c.pieces(c.local, c.client)[1]).passes("fragment_passed")
	}},
	{name: "the whole packet in one piece", family: 6, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p := c.opens(c.client, c.external).fragments(7)[0]
		c.arrives(p).becomes(p.as(c.client, c.local), "translated")
	}},
	{name: "a piece with an extension header before the ports", family: 6, proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		pieces := func(src, dst netip.AddrPort) []pkt {
			p := udp(src, dst, string(make([]byte, 100)))
			body := append([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, p.body()...)
			return pkt{src: src, dst: dst, proto: protoDest, payload: body}.fragments(8, 48)
		}
		p, want := pieces(c.client, c.external), pieces(c.client, c.local)
		c.arrives(p[0]).becomes(want[0], "translated")
		c.arrives(p[1]).becomes(want[1], "flow_kept")
	}},
	{name: "pieces of other protocols", steps: func(c *play) {
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
