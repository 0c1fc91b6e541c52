// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// summingToZero returns a datagram whose checksum would be 0. It has 0xffff instead: 0
// means that there is no checksum.
func summingToZero(src, dst netip.AddrPort) pkt {
	p := udp(src, dst, "\x00\x00 filled up")
	body := p.body()
	binary.BigEndian.PutUint16(body[6:], 0)
	s := p.l4sum(body)
	p.payload[0], p.payload[1] = byte(s>>8), byte(s)
	return p
}

var headerCases = []packetCase{
	{name: "IP options", family: 4, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		with := func(p pkt) pkt {
			return p.with(func(p *pkt) {
				p.ipOptions, p.tos, p.df, p.ttl = append([]byte{7, 39, 4}, make([]byte, 37)...), 0xb8, true, 1
			})
		}
		c.arrives(with(c.opens(c.client, c.external))).becomes(with(c.opens(c.client, c.remote)), "translated")
		c.leaves(with(c.opens(c.client, c.remote))).becomes(with(c.opens(c.source(), c.remote)), "source_translated")
		c.arrives(with(c.continues(c.remote, c.source()))).becomes(with(c.continues(c.remote, c.client)), "source_restored")
		c.leaves(with(c.continues(c.remote, c.client))).becomes(with(c.continues(c.external, c.client)), "reply_restored")
	}},
	{name: "extension headers", family: 6, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		with := func(p pkt) pkt {
			return p.with(func(p *pkt) {
				p.exts = []ext{{protoHopByHop, []byte{1, 4, 0, 0, 0, 0}}, {protoRouting, append([]byte{0, 0}, make([]byte, 20)...)},
					{protoDest, append([]byte{1, 12}, make([]byte, 12)...)}}
			})
		}
		c.arrives(with(c.opens(c.client, c.external))).becomes(with(c.opens(c.client, c.remote)), "translated")
		c.leaves(with(c.opens(c.client, c.remote))).becomes(with(c.opens(c.source(), c.remote)), "source_translated")
		c.arrives(with(c.continues(c.remote, c.source()))).becomes(with(c.continues(c.remote, c.client)), "source_restored")
		c.leaves(with(c.continues(c.remote, c.client))).becomes(with(c.continues(c.external, c.client)), "reply_restored")
	}},
	{name: "many extension headers", family: 6, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		for n := range 12 {
			p := c.opens(at(c.client, uint16(1000+n)), c.external).with(func(p *pkt) {
				for range n {
					p.exts = append(p.exts, ext{protoDest, []byte{1, 4, 0, 0, 0, 0}})
				}
			})
			if n <= maxExtensions {
				c.arrives(p).becomes(p.as(netip.AddrPort{}, c.local), "translated")
			} else {
				c.arrives(p).passes("protocol")
			}
		}
	}},
	{name: "what is encrypted or signed", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		p := c.opens(c.client, c.external)
		p = pkt{src: p.src, dst: p.dst, proto: protoESP, payload: p.body()}
		c.arrives(p).passes("protocol")
		c.leaves(p).passes("protocol")
		if c.v6 {
			c.arrives(c.opens(c.client, c.external).with(func(p *pkt) { p.exts = []ext{{protoAuth, make([]byte, 22)}} })).passes("protocol")
		}
	}},
	{name: "other protocols", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		for _, proto := range []uint8{protoSCTP, protoNone, 2, 4, 41, 47, 255} {
			p := c.opens(c.client, c.external)
			c.arrives(pkt{src: p.src, dst: p.dst, proto: proto, payload: p.body()}).passes("protocol")
			c.leaves(pkt{src: p.src, dst: p.dst, proto: proto, payload: p.body()}).passes("protocol")
		}
		other := map[bool]uint8{false: protoICMP6, true: protoICMP}[c.v6] // ICMP of the other family
		c.arrives(pkt{src: c.client, dst: c.external, proto: other, payload: make([]byte, 64)}).passes("protocol")
	}},
	{name: "UDP without a checksum", proto: protoUDP, family: 4, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		if c.rig.flags == checkComplete {
			c.Skip("without a checksum nothing makes up for other ports, and nothing reads the device's sum")
		}
		no := func(p pkt) pkt { return p.with(func(p *pkt) { p.noSum = true }) }
		c.arrives(no(c.opens(c.client, c.external))).becomes(no(c.opens(c.client, c.remote)), "translated")
		c.leaves(no(c.opens(c.client, c.remote))).becomes(no(c.opens(c.source(), c.remote)), "source_translated")
		c.arrives(no(c.continues(c.remote, c.source()))).becomes(no(c.continues(c.remote, c.client)), "source_restored")
		c.leaves(no(c.continues(c.remote, c.client))).becomes(no(c.continues(c.external, c.client)), "reply_restored")
	}},
	{name: "UDP whose checksum becomes 0", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		want := summingToZero(c.client, c.local)
		if sum := binary.BigEndian.Uint16(want.body()[6:]); sum != 0xffff {
			c.Fatalf("checksum %#x of what was to sum up to zero", sum)
		}
		c.arrives(want.as(netip.AddrPort{}, c.external)).becomes(want, "translated")
	}},
	{name: "cut short anywhere", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		for _, s := range []struct {
			hook     hook
			in, want pkt
			reason   string
		}{
			{ingress, c.continues(c.client, c.external), c.continues(c.client, c.local), "flow_kept"},
			{egress, c.continues(c.local, c.client), c.continues(c.external, c.client), "reply_restored"},
		} {
			in, want := s.in.bytes(), s.want.bytes()
			v, _ := readPacket(in, 0)
			need := v.l4 + map[uint8]int{protoTCP: 20, protoUDP: 8}[c.proto]
			for n := range in {
				if !c.rig.accepts(in[:n]) {
					continue
				}
				step := c.raw(s.hook, in[:n])
				if n < need {
					step.passes("malformed")
					continue
				}
				step.ends(unspec, s.reason)
				step.is(want[:n])
			}
		}
	}},
	{name: "headers that make no sense", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		good := c.opens(c.client, c.external).bytes()
		change := func(f func([]byte)) []byte {
			b := append([]byte(nil), good...)
			f(b)
			return b
		}
		if c.v6 {
			// A header whose length exceeds the packet.
			for _, kind := range []byte{protoHopByHop, protoRouting, protoDest} {
				c.raw(ingress, change(func(b []byte) { b[6], b[40], b[41] = kind, c.proto, 255 })).passes("malformed")
			}
			c.raw(ingress, change(func(b []byte) { b[6], b[40], b[41], b[48] = protoDest, protoFragment, 0, protoFragment })[:55]).passes("malformed")
			return
		}
		for ihl := range byte(5) {
			c.raw(ingress, change(func(b []byte) { b[0] = 0x40 | ihl })).passes("malformed")
			c.raw(egress, change(func(b []byte) { b[0] = 0x40 | ihl })).passes("malformed")
		}
		c.raw(ingress, change(func(b []byte) { b[0] = 0x4f })[:40]).passes("malformed")
	}},
	{name: "a frame of one version with a packet of the other", ethernet: true, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		frame := c.rig.frame(ingress, c.opens(c.client, c.external).with(func(p *pkt) { p.payload = make([]byte, 40) }).bytes())
		binary.BigEndian.PutUint16(frame[12:], map[bool]uint16{false: unix.ETH_P_IPV6, true: unix.ETH_P_IP}[c.v6])
		c.frame(ingress, frame).passes("malformed")
	}},
	{name: "no IP", ethernet: true, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		frame := c.rig.frame(ingress, c.opens(c.client, c.external).bytes())
		for _, kind := range []uint16{unix.ETH_P_ARP, unix.ETH_P_8021Q, unix.ETH_P_8021AD, unix.ETH_P_MPLS_UC, 60} {
			binary.BigEndian.PutUint16(frame[12:], kind)
			c.frame(ingress, frame).passes("protocol")
			c.frame(egress, frame).passes("protocol")
		}
	}},
	{name: "overheard", ethernet: true, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		for _, mac := range [][6]byte{{2, 0, 0, 0, 0, 9}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}} {
			frame := c.rig.frame(ingress, c.opens(c.client, c.external).bytes())
			copy(frame, mac[:])
			c.frame(ingress, frame).passes("protocol")
		}
	}},
	{name: "IPv4 addresses in an IPv6 header", family: 6, steps: func(c *play) {
		v4 := makePlan(false)
		v4.serve(c.world, c.proto, 1, v4.local)
		c.serve(c.world, c.proto, 2, c.local)
		c.load()
		mapped := netip.AddrPortFrom(netip.AddrFrom16(v4.external.Addr().As16()), v4.external.Port())
		c.arrives(c.opens(c.client, mapped)).passes("malformed")
	}},
}
