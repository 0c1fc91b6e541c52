// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"time"
)

// icmpKind is a kind of ICMP error: type, code and the second word of the header.
type icmpKind struct {
	kind, code uint8
	word       uint32
}

// errors returns fragmentation needed (packet too big), port unreachable, time exceeded and
// a parameter problem.
func (p plan) errors() []icmpKind {
	if p.v6 {
		return []icmpKind{{2, 0, 1280}, {1, 4, 0}, {3, 0, 0}, {4, 1, 40}}
	}
	return []icmpKind{{3, 4, 1400}, {3, 3, 0}, {11, 0, 0}, {12, 0, 0x14000000}}
}

// quotes returns the parts of a packet that an error may quote: the whole packet, or eight
// bytes of its transport header, as hosts did before RFC 1812, or up to 1232 bytes of a
// large one.
func quotes(p pkt) [][]byte {
	large := p.with(func(p *pkt) { p.payload = make([]byte, 1400) }).bytes()
	v, _ := readPacket(large, 0)
	return [][]byte{p.bytes(), p.bytes()[:v.l4+8], p.bytes()[:v.l4+12], large[:1200]}
}

// quoted runs an error about packet p, which must become an error about packet want, in all
// kinds and sizes.
func (c *play) quoted(h hook, src, dst netip.Addr, p pkt, wantSrc, wantDst netip.Addr, want pkt) {
	c.Helper()
	for _, k := range c.errors() {
		wants := quotes(want)
		for i, q := range quotes(p) {
			in := icmpError(src, dst, k.kind, k.code, k.word, q)
			out := icmpError(wantSrc, wantDst, k.kind, k.code, k.word, wants[i])
			c.raw(h, in.bytes()).becomes(out, "icmp_translated")
		}
	}
}

var icmpCases = []packetCase{
	{name: "errors about a flow", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		router := c.other.Addr()
		client, external, remote, source := c.client.Addr(), c.external.Addr(), c.remote.Addr(), c.wire
		for _, from := range []netip.Addr{router, client} { // about a reply, which went to the client
			c.quoted(ingress, from, external, c.continues(c.external, c.client), from, remote, c.continues(c.remote, c.client))
		}
		for _, from := range []netip.Addr{router, client, c.node.Addr()} { // and the same on its path to the backend
			c.quoted(egress, from, remote, c.continues(c.remote, c.client), from, remote, c.continues(c.remote, c.source()))
		}
		for _, from := range []netip.Addr{router, remote} { // about a packet to the backend
			c.quoted(ingress, from, source, c.continues(c.source(), c.remote), from, client, c.continues(c.client, c.remote))
		}
		c.quoted(egress, router, client, c.continues(c.client, c.remote), router, client, c.continues(c.client, c.external))
		c.quoted(egress, remote, client, c.continues(c.client, c.remote), external, client, c.continues(c.client, c.external))
	}},
	{name: "errors about a flow that is past its time", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		for _, established := range []bool{false, true} {
			c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.remote), "translated")
			c.answer(c.client, c.external, c.remote)
			if established {
				c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.remote), "flow_kept")
			}
			c.rig.age(c.lifetime(established) + time.Second)
			for _, k := range c.errors() {
				about := func(dst netip.Addr, p pkt) pkt {
					return icmpError(c.other.Addr(), dst, k.kind, k.code, k.word, p.bytes())
				}
				c.arrives(about(c.external.Addr(), c.continues(c.external, c.client))).passes("icmp_passed")
				c.arrives(about(c.wire, c.continues(c.source(), c.remote))).passes("icmp_passed")
				c.leaves(about(c.remote.Addr(), c.continues(c.remote, c.client))).passes("icmp_passed")
				c.leaves(about(c.client.Addr(), c.continues(c.client, c.remote))).passes("icmp_passed")
			}
			c.rig.clear()
		}
	}},
	{name: "errors about a flow with another port inside", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		inner := at(c.client, firstPort)
		c.arrives(c.opens(c.client, c.loadBalancer)).becomes(c.opens(inner, c.local), "translated")
		router, client := c.other.Addr(), c.client.Addr()
		c.quoted(ingress, router, c.loadBalancer.Addr(), c.continues(c.loadBalancer, c.client), router, c.local.Addr(),
			c.continues(c.local, inner))
		c.quoted(egress, c.local.Addr(), client, c.continues(inner, c.local), c.loadBalancer.Addr(), client,
			c.continues(c.client, c.loadBalancer))
		c.quoted(egress, c.local.Addr(), client, c.continues(c.client, c.local), c.external.Addr(), client,
			c.continues(c.client, c.external))
	}},
	{name: "errors about what netfilter masquerades behind a source port", config: twoPorts, steps: func(c *play) {
		source, second := c.remapped()
		router, remote := c.other.Addr(), c.remote.Addr()
		c.quoted(ingress, router, c.wire, c.continues(second, c.remote), router, c.wire, c.continues(source, c.remote))
		c.arrives(c.continues(c.remote, second)).becomes(c.continues(c.remote, source), "source_restored")
		c.quoted(egress, c.wire, remote, c.continues(c.remote, source), c.wire, remote, c.continues(c.remote, second))
	}},
	{name: "errors about what is not ours", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		for _, k := range c.errors() {
			for _, q := range []pkt{
				c.continues(c.external, at(c.client, 9)), c.continues(at(c.external, 9), c.client), c.continues(c.client, c.external),
				pkt{src: c.external, dst: c.client, proto: protoSCTP, payload: make([]byte, 20)},
				c.continues(c.external, c.client).fragments(5, 8)[1],
			} {
				e := icmpError(c.other.Addr(), c.external.Addr(), k.kind, k.code, k.word, q.bytes())
				c.arrives(e).passes("icmp_passed")
				c.leaves(e).passes("icmp_passed")
			}
			// The local backend has no SNAT address.
			e := icmpError(c.other.Addr(), c.local.Addr(), k.kind, k.code, k.word, c.continues(c.local, c.client).bytes())
			c.leaves(e).passes("icmp_passed")
		}
	}},
	{name: "ICMP that is no error", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		quote := c.continues(c.external, c.client).bytes()
		kinds := []uint8{0, 8, 5, 9, 10, 13, 17, 30}
		if c.v6 {
			kinds = []uint8{0, 5, 127, 128, 129, 133, 134, 135, 136, 137, 143}
		}
		for _, kind := range kinds {
			c.arrives(icmpError(c.client.Addr(), c.external.Addr(), kind, 0, 0, quote)).passes("icmp_passed")
			c.leaves(icmpError(c.external.Addr(), c.client.Addr(), kind, 0, 0, quote)).passes("icmp_passed")
		}
	}},
	{name: "an error cut short", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		k := c.errors()[0]
		quote, want := c.continues(c.external, c.client), c.continues(c.local, c.client)
		e := icmpError(c.other.Addr(), c.external.Addr(), k.kind, k.code, k.word, quote.bytes()).bytes()
		v, _ := readPacket(quote.bytes(), 0)
		for n := range len(e) {
			inner := n - len(e) + len(quote.bytes())
			if !c.rig.accepts(e[:n]) || inner >= v.l4+8 {
				continue
			}
			s := c.raw(ingress, e[:n])
			if n < len(e)-len(quote.bytes())-8 {
				s.passes("malformed")
			} else {
				s.passes("icmp_passed")
			}
		}
		_ = want
	}},
	{name: "an error about a datagram of the node's own", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.leaves(udp(c.node, c.other, "question")).passes("egress_passed")
		for _, k := range c.errors() {
			e := icmpError(c.client.Addr(), c.node.Addr(), k.kind, k.code, k.word, udp(c.node, c.other, "question").bytes())
			c.arrives(e).passes("icmp_passed")
		}
	}},
}
