// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"time"

	"shunt/maps"
)

// beside returns the client's address as the backend sees it when the client's own port is
// taken: with the only port to choose from.
func (c *play) beside() netip.AddrPort { return at(c.client, firstPort) }

// direct opens a connection from the client to the backend's own address, whose ports no
// flow has.
func (c *play) direct(b netip.AddrPort) {
	c.Helper()
	c.arrives(c.opens(c.client, b)).passes("no_frontend")
	c.leaves(c.accepts(b, c.client)).passes("egress_passed")
	c.arrives(c.continues(c.client, b)).passes("no_frontend")
}

// remappedBy opens a direct connection that collides with a flow. It checks that the
// connection is remapped, and that packets of both stay apart.
func (c *play) remappedBy(frontend, b netip.AddrPort) {
	c.Helper()
	inner := c.beside()
	c.arrives(c.opens(c.client, b)).becomes(c.opens(inner, b), "direct_remapped")
	c.arrives(c.opens(c.client, b)).becomes(c.opens(inner, b), "flow_kept")
	c.leaves(c.accepts(b, inner)).becomes(c.accepts(b, c.client), "reply_restored")
	for range 2 {
		c.arrives(c.continues(c.client, b)).becomes(c.continues(inner, b), "flow_kept")
		c.leaves(c.continues(b, inner)).becomes(c.continues(b, c.client), "reply_restored")
		c.arrives(c.continues(c.client, frontend)).becomes(c.continues(c.client, b), "flow_kept")
		c.leaves(c.continues(b, c.client)).becomes(c.continues(frontend, c.client), "reply_restored")
	}
	if left := c.rig.flows(fresh); len(left) > 0 {
		c.Fatalf("not confirmed: %v", left)
	}
}

// over expires all flows.
func (c *play) over() { c.rig.age(timeouts.TCPEstablished + time.Second) }

var directCases = []packetCase{
	{name: "a direct connection while a flow has its port", steps: func(c *play) {
		for _, b := range []netip.AddrPort{c.local, c.host} {
			c.rig.clear()
			c.serve(c.world, c.proto, 1, b)
			c.load()
			c.open(c.client, c.external, b)
			c.remappedBy(c.external, b)
			// It keeps the port when the flow is gone, and is translated even when the backend
			// serves no more.
			c.world = newWorld()
			c.load()
			c.arrives(c.continues(c.client, b)).becomes(c.continues(c.beside(), b), "flow_kept")
		}
	}},
	{name: "an answer to a client that is a backend too", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.world.backends[20] = endpoint{addr: at(c.client, 5353), proto: c.proto, flags: maps.ClusterSet, service: 2}
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
		for range 2 {
			c.arrives(c.accepts(c.local, c.client)).passes("no_frontend")
			c.leaves(c.accepts(c.local, c.client)).becomes(c.accepts(c.external, c.client), "reply_restored")
			c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.local), "flow_kept")
		}
	}},
	{name: "a direct connection while a flow that is not answered has its port", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
		c.arrives(c.opens(c.client, c.local)).becomes(c.opens(c.beside(), c.local), "direct_remapped")
		c.leaves(c.accepts(c.local, c.client)).becomes(c.accepts(c.external, c.client), "reply_restored")
		c.leaves(c.accepts(c.local, c.beside())).becomes(c.accepts(c.local, c.client), "reply_restored")
	}},
	{name: "a daemon that starts in the handshake of a direct connection", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.arrives(c.opens(c.client, c.local)).becomes(c.opens(c.beside(), c.local), "direct_remapped")
		c.leaves(c.accepts(c.local, c.beside())).becomes(c.accepts(c.local, c.client), "reply_restored")
		c.rig.restart()
		for range 2 {
			c.arrives(c.continues(c.client, c.local)).becomes(c.continues(c.beside(), c.local), "flow_kept")
			c.leaves(c.continues(c.local, c.beside())).becomes(c.continues(c.local, c.client), "reply_restored")
		}
	}},
	{name: "a flow while a direct connection has its port", steps: func(c *play) {
		for _, b := range []netip.AddrPort{c.local, c.host} {
			c.rig.clear()
			c.serve(c.world, c.proto, 1, b)
			c.load()
			c.direct(b)
			c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.beside(), b), "translated")
			c.leaves(c.accepts(b, c.beside())).becomes(c.accepts(c.external, c.client), "reply_restored")
			c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.beside(), b), "flow_kept")
			c.leaves(c.continues(b, c.client)).passes("egress_passed")
			c.arrives(c.continues(c.client, b)).passes("no_frontend")
		}
	}},
	{name: "a note of a direct connection, while that is used", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.direct(c.local)
		for range 2 {
			c.rig.age(timeouts.UDPEstablished - slack)
			c.arrives(c.continues(c.client, c.local)).passes("no_frontend")
		}
		c.rig.age(timeouts.UDPEstablished - slack)
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.beside(), c.local), "translated")
		c.rig.clear()
		c.direct(c.local)
		c.rig.age(timeouts.UDPEstablished + time.Second)
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
		// The direct connection continues.
		c.arrives(c.continues(c.client, c.local)).becomes(c.continues(c.beside(), c.local), "direct_remapped")
	}},
	{name: "a flow while a direct connection that no note tells of has its port", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		for _, flags := range []uint8{ack, ack | psh, fin | ack} {
			c.rig.clear()
			c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
			c.leaves(tcp(c.local, c.client, flags)).passes("egress_passed")
			if left := c.rig.flows(fresh); len(left) > 0 {
				c.Fatalf("entries are left: %v", left)
			}
			c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.beside(), c.local), "translated")
			c.leaves(c.accepts(c.local, c.beside())).becomes(c.accepts(c.external, c.client), "reply_restored")
			c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.beside(), c.local), "flow_kept")
			c.leaves(c.continues(c.local, c.beside())).becomes(c.continues(c.external, c.client), "reply_restored")
			c.leaves(tcp(c.local, c.client, flags)).passes("egress_passed")
		}
	}},
	{name: "a flow that the backend refuses", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
		c.backendSays(rst|ack, c.external, c.local)
	}},
	{name: "a direct connection from the port of a flow that is past its time", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.over()
		c.direct(c.local)
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.beside(), c.local), "translated")
		c.leaves(c.continues(c.local, c.client)).passes("egress_passed")
	}},
	{name: "a direct connection from the port of a flow that has ended", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.backendSays(fin|ack, c.external, c.local)
		c.clientSays(fin|ack, c.external, c.local, "flow_kept")
		c.arrives(c.opens(c.client, c.local)).becomes(c.opens(c.client, c.local), "direct_remapped")
		c.leaves(c.accepts(c.local, c.client)).becomes(c.accepts(c.local, c.client), "reply_restored")
		c.arrives(c.continues(c.client, c.local)).becomes(c.continues(c.client, c.local), "flow_kept")
		c.arrives(c.continues(c.client, c.external)).dropped("flow_over")
		c.leaves(c.continues(c.local, c.client)).becomes(c.continues(c.local, c.client), "reply_restored")
	}},
	{name: "a direct connection from the port of one that was remapped", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.remappedBy(c.external, c.local)
		c.over()
		c.rig.lose(func(_ flowKey, f flow) bool { return f.frontend == newEnd(c.external) })
		c.direct(c.local)
		if n := len(c.rig.flows(confirmed)) + len(c.rig.flows(fresh)); n != 0 {
			c.Errorf("%d entries are left", n)
		}
	}},
	{name: "a direct connection in fragments", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		first := "direct_remapped"
		want := c.fragments(c.beside(), c.local)
		for i, p := range c.fragments(c.client, c.local) {
			c.arrives(p).becomes(want[i], first)
			first = "flow_kept"
		}
	}},
	{name: "a direct connection that is routed here while a flow has its port", config: twoPorts, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		second := at(c.source(), firstPort+1)
		c.leaves(c.opens(second, c.remote)).passes("egress_passed") // so that the flow gets the first port
		c.open(c.client, c.external, c.remote)
		c.rig.lose(func(_ flowKey, f flow) bool { return f.flags&maps.FlowLocal != 0 })
		s := c.arrives(c.opens(c.client, c.remote))
		v, _ := readPacket(s.out, 0)
		inner := at(c.client, v.src.port)
		s.becomes(c.opens(inner, c.remote), "direct_remapped")
		c.leaves(c.opens(inner, c.remote)).becomes(c.opens(second, c.remote), "source_translated")
		c.arrives(c.accepts(c.remote, second)).becomes(c.accepts(c.remote, inner), "source_restored")
		c.leaves(c.accepts(c.remote, inner)).becomes(c.accepts(c.remote, c.client), "reply_restored")
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
		c.leaves(c.continues(c.remote, c.client)).becomes(c.continues(c.external, c.client), "reply_restored")
	}},
	{name: "a SYN-ACK and a reset of a direct connection that no note tells of", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		opens := c.opens(c.client, c.external).with(func(p *pkt) { p.seq = 5000000 })
		stranger := func(flags uint8) pkt { return tcp(c.local, c.client, flags) }
		answer := func(flags uint8, number uint32) pkt {
			return tcp(c.local, c.client, flags).with(func(p *pkt) { p.ack = number })
		}
		// After its RST only the flow has the port.
		c.arrives(opens).becomes(opens.as(c.client, c.local), "translated")
		c.leaves(stranger(rst | ack)).passes("egress_passed")
		c.leaves(stranger(rst)).passes("egress_passed")
		c.leaves(answer(syn|ack, 5000001)).becomes(answer(syn|ack, 5000001).as(c.external, c.client), "reply_restored")
		c.leaves(stranger(rst)).becomes(stranger(rst).as(c.external, c.client), "reply_restored")
		// After its SYN-ACK the direct connection keeps the port: the flow gets another
		// one.
		c.rig.clear()
		c.arrives(opens).becomes(opens.as(c.client, c.local), "translated")
		c.leaves(stranger(syn | ack)).passes("egress_passed")
		c.arrives(opens).becomes(opens.as(c.beside(), c.local), "translated")
		// A SYN may have data, which the backend acknowledges or not.
		for _, number := range []uint32{5000001, 5000001 + 1400} {
			for _, flags := range []uint8{syn | ack, rst | ack} {
				c.rig.clear()
				c.arrives(opens).becomes(opens.as(c.client, c.local), "translated")
				c.leaves(answer(flags, number)).becomes(answer(flags, number).as(c.external, c.client), "reply_restored")
			}
		}
	}},
	{name: "a SYN of another connection before the backend has answered", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		for _, seq := range []uint32{5000000, 5000000, 9000000, 7} {
			p := c.opens(c.client, c.external).with(func(p *pkt) { p.seq = seq })
			reason := "flow_kept"
			if len(c.rig.flows(fresh)) == 0 {
				reason = "translated"
			}
			c.arrives(p).becomes(p.as(c.client, c.local), reason)
		}
		last := tcp(c.local, c.client, syn|ack).with(func(p *pkt) { p.ack = 8 })
		c.leaves(last).becomes(last.as(c.external, c.client), "reply_restored")
	}},
}
