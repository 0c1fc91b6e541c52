// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"runtime"
	"time"

	"shunt/maps"
)

// reset returns the RST that answers a TCP packet (RFC 9293, 3.10.7.1).
func reset(p pkt) pkt {
	r := pkt{src: p.dst, dst: p.src, proto: protoTCP, id: p.id, tos: p.tos, df: true, ipOptions: p.ipOptions,
		exts: p.exts, flags: rst | ack, ack: p.seq + uint32(len(p.payload))}
	if p.flags&syn != 0 {
		r.ack++
	}
	if p.flags&fin != 0 {
		r.ack++
	}
	if p.flags&ack != 0 {
		r.flags, r.seq, r.ack = rst, p.ack, 0
	}
	return r
}

// unreachable returns the ICMP error that answers a datagram: it quotes the IP header and
// eight bytes (RFC 792; RFC 4443 allows more).
func unreachable(p pkt) pkt {
	b := p.bytes()
	v, _ := readPacket(b, 0)
	r := icmpError(p.dst.Addr(), p.src.Addr(), 3, 3, 0, b[:v.l4+8])
	if !v.v4 {
		r.icmpType, r.icmpCode = 1, 4
	}
	r.df = true
	return r
}

// refused checks the answer for the packet's protocol.
func (c *play) refused(p pkt, reason string) {
	c.Helper()
	if len(p.options)+len(p.payload) > 0 {
		c.trims()
	}
	if p.proto == protoTCP {
		c.arrives(p).answered(reset(p), reason)
		return
	}
	c.arrives(p).answered(unreachable(p), reason)
}

// emptied makes a service without a usable endpoint, or only with endpoints on other nodes.
func (c *play) emptied(flags uint16) {
	c.Helper()
	c.serve(c.world, c.proto, 1)
	c.world.change(1, func(f *frontend) { f.flags = flags })
	c.load()
}

var refusalCases = []packetCase{
	{name: "nobody serves", steps: func(c *play) {
		c.emptied(0)
		for _, addr := range c.kinds() {
			c.refused(c.opens(c.client, addr), "no_endpoint")
		}
		if len(c.rig.flows(fresh)) != 0 {
			c.Errorf("flows of nobody: %v", c.rig.flows(fresh))
		}
	}},
	{name: "an answer to a header alone", ethernet: true, steps: func(c *play) {
		c.emptied(0)
		if c.proto == protoTCP {
			c.refused(tcp(c.client, c.external, syn), "no_endpoint")
		} else {
			c.refused(udp(c.client, c.external, ""), "no_endpoint")
		}
	}},
	{name: "a port that the cluster IP does not have", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.refused(c.opens(c.client, at(c.clusterIP, 9)), "undefined_port")
	}},
	{name: "an address of the service CIDR that no service has", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		none := netip.AddrPortFrom(c.clusterIP.Addr().Next(), 80)
		c.load()
		c.arrives(c.opens(c.client, none)).passes("no_frontend")
		c.world.cidrs[netip.PrefixFrom(c.clusterIP.Addr(), c.clusterIP.Addr().BitLen()-8).Masked()] = true
		c.load()
		c.arrives(c.opens(c.client, none)).dropped("unallocated")
		c.arrives(c.opens(c.client, c.clusterIP)).becomes(c.opens(c.client, c.local), "translated")
		c.refused(c.opens(c.client, at(c.clusterIP, 9)), "undefined_port")
		c.arrives(c.opens(c.client, c.other)).passes("no_frontend")
		c.leaves(c.opens(c.client, none)).passes("egress_passed")
		// A service of another proxy has it.
		c.world.allocated[none.Addr()] = true
		c.load()
		c.arrives(c.opens(c.client, none)).passes("no_frontend")
		c.arrives(c.opens(c.client, at(netip.AddrPortFrom(none.Addr().Next(), 80), 80))).dropped("unallocated")
		delete(c.world.allocated, none.Addr())
		c.load()
		c.arrives(c.opens(c.client, none)).dropped("unallocated")
	}},
	{name: "what a reset answers", proto: protoTCP, steps: func(c *play) {
		c.emptied(0)
		for _, p := range []pkt{
			tcp(c.client, c.external, syn),
			tcp(c.client, c.external, syn).with(func(p *pkt) { p.seq = 0xffffffff }),
			tcp(c.client, c.external, syn).with(func(p *pkt) { p.payload = []byte("fast open"); p.options = make([]byte, 40) }),
			tcp(c.client, c.external, syn|fin),
			tcp(c.client, c.external, syn|psh|urg).with(func(p *pkt) { p.tos, p.ttl, p.id = 0x10, 3, 99; p.payload = []byte("odd") }),
		} {
			c.refused(p, "no_endpoint")
		}
		// Not the first of a connection: it may belong to a connection of the node's stack,
		// which answers it.
		for _, flags := range []uint8{ack, rst, syn | ack, syn | rst, fin | ack} {
			c.arrives(tcp(c.client, c.external, flags)).passes("no_flow")
		}
	}},
	{name: "a connection that nobody knows", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.world.resets = true
		c.load()
		for _, to := range []netip.AddrPort{c.loadBalancer, c.external, c.clusterIP, at(c.clusterIP, 9)} {
			for _, p := range []pkt{
				tcp(c.client, to, ack).with(func(p *pkt) { p.ack = 0xfffffffe }),
				tcp(c.client, to, ack|psh).with(func(p *pkt) { p.ack, p.payload = 77, []byte("more") }),
				tcp(c.client, to, fin|ack).with(func(p *pkt) { p.ack = 5 }),
				tcp(c.client, to, syn|ack).with(func(p *pkt) { p.ack = 5 }),
				tcp(c.client, to, fin),
				tcp(c.client, to, 0).with(func(p *pkt) { p.payload = []byte("odd") }),
			} {
				c.refused(p, "connection_unknown")
			}
			for _, flags := range []uint8{rst, rst | ack, rst | syn} { // a RST never answers a RST
				c.arrives(tcp(c.client, to, flags)).dropped("answer_withheld")
			}
			if !c.rig.device.NoEthernet {
				group := netip.MustParseAddrPort("224.0.0.1:40000")
				if c.v6 {
					group = netip.MustParseAddrPort("[ff02::1]:40000")
				}
				c.arrives(tcp(group, to, ack)).dropped("answer_withheld")
			}
		}
		// The stack knows the node's connections. Ports without a service may be another
		// proxy's.
		c.arrives(tcp(c.client, c.node, ack)).passes("no_flow")
		c.arrives(tcp(c.client, at(c.external, 9), ack)).passes("no_frontend")
		// Packets of a known connection are passed on, also if the client's entry was lost.
		c.open(c.client, c.external, c.local)
		c.rig.lose(func(k flowKey, _ flow) bool { return k.kind == maps.FlowKeyIn })
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.local), "flow_kept")
		if n := c.rig.kernel.Connections(10); n == 0 || len(c.rig.flows(fresh)) != 0 {
			c.Errorf("%d connections, flows %v", n, c.rig.flows(fresh))
		}
	}},
	{name: "a connection that nobody knows, without a backend", proto: protoTCP, steps: func(c *play) {
		c.emptied(0)
		c.world.resets = true
		c.load()
		c.refused(tcp(c.client, c.external, ack).with(func(p *pkt) { p.ack = 5 }), "connection_unknown")
		c.emptied(maps.OutsideLocal | maps.Elsewhere)
		c.refused(tcp(c.client, c.external, ack).with(func(p *pkt) { p.ack = 5 }), "connection_unknown")
		c.serve(c.world, c.proto, 1, c.local)
		c.world.change(1, func(f *frontend) { f.flags |= maps.SourceRanges })
		c.load()
		c.arrives(tcp(c.client, c.loadBalancer, ack)).dropped("source_range")
	}},
	{name: "a connection that nobody knows, while others translate some", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		for _, to := range []netip.AddrPort{c.loadBalancer, c.external, c.clusterIP, at(c.clusterIP, 9), c.node} {
			c.arrives(tcp(c.client, to, ack)).passes("no_flow")
		}
	}},
	{name: "what an unreachable port answers", proto: protoUDP, steps: func(c *play) {
		c.emptied(0)
		for _, p := range []pkt{
			udp(c.client, c.external, "short."),
			udp(c.client, c.external, "odd size."),
			udp(c.client, c.external, string(make([]byte, 1400))),
			udp(c.client, c.external, "at last").with(func(p *pkt) { p.tos, p.ttl, p.id = 0x10, 3, 99 }),
		} {
			c.refused(p, "no_endpoint")
		}
		p := udp(c.client, c.external, string(make([]byte, 1000)))
		first := p.fragments(77, 504)[0]
		c.refused(first, "no_endpoint")
	}},
	{name: "with IP options", family: 4, steps: func(c *play) {
		c.emptied(0)
		c.refused(c.opens(c.client, c.external).with(func(p *pkt) { p.ipOptions = []byte{148, 4, 0, 0, 1, 1, 1, 0} }), "no_endpoint")
	}},
	{name: "with extension headers", family: 6, steps: func(c *play) {
		c.emptied(0)
		c.refused(c.opens(c.client, c.external).with(func(p *pkt) {
			p.exts = []ext{{protoHopByHop, []byte{5, 2, 0, 0, 1, 0}}, {protoDest, []byte{1, 4, 0, 0, 0, 0}}}
		}), "no_endpoint")
	}},
	{name: "an answer that can't be made", steps: func(c *play) {
		c.emptied(0)
		if c.proto == protoTCP { // the length of a fragmented segment is unknown
			p := c.opens(c.client, c.external).with(func(p *pkt) { p.payload = make([]byte, 100) })
			c.arrives(p.fragments(5, 24)[0]).dropped("write_failed")
			return
		}
		c.trims()
		if c.v6 {
			p := c.opens(c.client, c.external).with(func(p *pkt) { p.exts = []ext{{protoDest, make([]byte, 8*31-2)}} })
			c.arrives(p).dropped("write_failed")
		}
	}},
	{name: "no answer to an address of no host", steps: func(c *play) {
		c.emptied(0)
		none := []string{"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.8.0.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"}
		if c.v6 {
			none = []string{"::", "::1", "ff02::1", "ff0e::86dd:1"}
		}
		for _, s := range none {
			if c.rig.device.NoEthernet {
				continue // BPF_PROG_TEST_RUN takes their bytes for another protocol's EtherType (plan_test.go)
			}
			src := netip.AddrPortFrom(netip.MustParseAddr(s), 40000)
			c.arrives(c.opens(src, c.external)).dropped("answer_withheld")
			c.arrives(c.opens(src, at(c.clusterIP, 9))).dropped("answer_withheld")
		}
		c.arrives(c.opens(at(c.external, 40000), c.external)).dropped("answer_withheld")
		c.refused(c.opens(c.client, c.external), "no_endpoint")
	}},
	{name: "a limit to ICMP errors", proto: protoUDP, config: fewErrors, ethernet: true, steps: func(c *play) {
		c.emptied(0)
		c.trims()
		p := c.opens(c.client, c.external)
		answers := func(packets int) (n int) {
			for range packets {
				s := c.arrives(p)
				if s.got.verdict == redirect {
					s.answered(unreachable(p), "no_endpoint")
					n++
				} else {
					s.dropped("answer_limited")
				}
			}
			return n
		}
		start := time.Now()
		most := 2 + int(time.Second/errorInterval)
		n := answers(500)
		most = runtime.NumCPU() * (most + int(time.Since(start)/errorInterval))
		if n > most { // 0, if the other family's cases have used them all
			c.Errorf("%d of 500 datagrams at once were answered, want at most %d", n, most)
		}
		for answers(1) == 0 { // and again after some time
			if time.Since(start) > 10*time.Second {
				c.Fatalf("no ICMP error for %v", time.Since(start))
			}
			time.Sleep(errorInterval / 10)
		}
	}},
	{name: "resets have no limit", proto: protoTCP, config: fewErrors, steps: func(c *play) {
		c.emptied(0)
		for range 100 {
			c.refused(tcp(c.client, c.external, syn), "no_endpoint")
		}
	}},
	{name: "policy Local, and all endpoints elsewhere", steps: func(c *play) {
		c.emptied(maps.OutsideLocal | maps.Elsewhere)
		for _, addr := range c.kinds() {
			c.arrives(c.opens(c.client, addr)).dropped("no_local_endpoint")
		}
	}},
	{name: "policy Local, and a client that is a pod of the cluster", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.world.change(1, func(f *frontend) {
			f.flags = maps.OutsideLocal | maps.Elsewhere
			if f.kind != maps.ClusterIP {
				f.outside = []uint32{}
			}
		})
		c.load()
		c.arrives(c.opens(c.client, c.external)).dropped("no_local_endpoint")
		c.arrives(c.opens(c.pod, c.external)).becomes(c.opens(c.pod, c.remote), "translated")
		c.leaves(c.opens(c.pod, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
	}},
	{name: "policy Local, and a client that is a pod of this node", config: podDevice, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.world.change(1, func(f *frontend) { f.flags, f.outside = maps.OutsideLocal|maps.Elsewhere, []uint32{} })
		c.load()
		client := at(c.local, 555)
		c.arrives(c.opens(client, c.external)).becomes(c.opens(client, c.remote), "translated")
	}},
	{name: "source ranges", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		bits := c.client.Addr().BitLen()
		c.world.sources[1] = []netip.Prefix{netip.PrefixFrom(c.client.Addr(), bits),
			netip.PrefixFrom(c.pod.Addr(), bits-8).Masked()}
		c.world.change(1, func(f *frontend) {
			if f.kind == maps.LoadBalancerIP {
				f.flags |= maps.SourceRanges
			}
		})
		c.load()
		c.arrives(c.opens(c.client, c.loadBalancer)).becomes(c.opens(c.client, c.local), "translated")
		c.arrives(c.opens(c.pod, c.loadBalancer)).becomes(c.opens(c.pod, c.local), "translated")
		c.arrives(c.opens(c.other, c.loadBalancer)).dropped("source_range")
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.local), "translated")
		// Another service's ranges do not apply, and an open flow is not checked.
		c.world.sources[2], c.world.sources[1] = c.world.sources[1], nil
		c.load()
		c.arrives(c.opens(at(c.client, 4000), c.loadBalancer)).dropped("source_range")
		c.arrives(c.continues(c.client, c.loadBalancer)).becomes(c.continues(c.client, c.local), "flow_kept")
	}},
}
