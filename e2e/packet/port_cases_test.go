// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"time"

	"shunt/maps"
)

var choiceCases = []packetCase{
	{name: "which backend is the client's port's and address's luck, every time the same", steps: func(c *play) {
		for i := range uint16(4) {
			c.serve(c.world, c.proto, 1, at(c.local, 8000), at(c.local, 8001), at(c.local, 8002), at(c.local, 8003))
			c.load() // other slots each time
			for port := range uint16(32) {
				client := at(c.client, 20000+port)
				want := at(c.local, 8000+uint16(pick(newEnd(client), newEnd(c.external), c.proto)%4))
				c.arrives(c.opens(client, c.external)).becomes(c.opens(client, want), "translated")
			}
			if c.rig.clear(); i == 0 && len(c.rig.flows(fresh)) != 0 {
				c.Fatal("flows are left")
			}
		}
	}},
}

var portCases = []packetCase{
	{name: "one client port to frontends that share a backend", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		inner := at(c.client, firstPort)
		c.arrives(c.opens(c.client, c.loadBalancer)).becomes(c.opens(inner, c.local), "translated")
		c.leaves(c.accepts(c.local, inner)).becomes(c.accepts(c.loadBalancer, c.client), "reply_restored")
		c.leaves(c.continues(c.local, c.client)).becomes(c.continues(c.external, c.client), "reply_restored")
		c.arrives(c.continues(c.client, c.loadBalancer)).becomes(c.continues(inner, c.local), "flow_kept")
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.local), "flow_kept")
		// There is no third port, and the existing flows are not affected.
		c.arrives(c.opens(c.client, c.node)).dropped("collision")
		c.arrives(c.continues(c.client, c.loadBalancer)).becomes(c.continues(inner, c.local), "flow_kept")
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.local), "flow_kept")
		// When the first flow has expired, its port is free.
		c.rig.age(timeouts.TCPEstablished + time.Second)
		c.arrives(c.opens(c.client, c.node)).becomes(c.opens(c.client, c.local), "translated")
	}},
	{name: "source ports run out", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.remote), "translated")
		c.leaves(c.opens(c.other, c.remote)).dropped("ports_exhausted")
		c.leaves(c.opens(c.other, c.remote)).dropped("ports_exhausted")
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.remote), "flow_kept")
		c.leaves(c.continues(c.client, c.remote)).becomes(c.continues(c.source(), c.remote), "source_translated")
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
		// Towards another backend the same port is free.
		second := at(c.remote, 8081)
		c.world.backends[11] = endpoint{addr: second, proto: c.proto, flags: maps.ClusterSet, service: 1}
		c.world.change(1, func(f *frontend) { f.outside = []uint32{11} })
		c.load()
		third := at(c.client, 40009)
		c.arrives(c.opens(third, c.external)).becomes(c.opens(third, second), "translated")
		c.leaves(c.opens(third, second)).becomes(c.opens(c.source(), second), "source_translated")
	}},
	{name: "a source port of a flow whose time is over", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		c.rig.age(timeouts.TCPEstablished + time.Second)
		// Now the packet belongs to no flow: the client uses the backend's own address.
		c.leaves(c.continues(c.client, c.remote)).passes("egress_passed")
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.remote), "translated")
		c.leaves(c.opens(c.other, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
		c.leaves(c.continues(c.client, c.remote)).passes("egress_passed")
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.other), "source_restored")
	}},
	{name: "a source port of a handshake that does not go on", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.remote), "translated")
		c.leaves(c.opens(c.client, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
		c.arrives(tcp(c.remote, c.source(), syn|ack)).becomes(tcp(c.remote, c.client, syn|ack), "source_restored")
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.remote), "translated")
		c.leaves(c.opens(c.other, c.remote)).dropped("ports_exhausted")
		c.rig.age(2 * time.Second)
		third := at(c.other, 40009)
		c.arrives(c.opens(third, c.external)).becomes(c.opens(third, c.remote), "translated")
		c.leaves(c.opens(third, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
		c.arrives(tcp(c.remote, c.source(), syn|ack)).becomes(tcp(c.remote, third, syn|ack), "source_restored")
		c.arrives(c.continues(third, c.external)).becomes(c.continues(third, c.remote), "flow_kept")
		// A later packet of the first flow gets no port, and the third keeps its own.
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.remote), "flow_kept")
		c.leaves(c.continues(c.client, c.remote)).dropped("ports_exhausted")
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, third), "source_restored")
		c.leaves(c.continues(third, c.remote)).becomes(c.continues(c.source(), c.remote), "source_translated")
	}},
	{name: "a source port of a connection that was reset", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		c.clientSays(rst, c.external, c.remote, "flow_kept")
		c.taken()
	}},
	{name: "a source port of a connection that the client ended first", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		c.clientSays(fin|ack, c.external, c.remote, "flow_kept")
		c.arrives(tcp(c.remote, c.source(), fin|ack)).becomes(tcp(c.remote, c.client, fin|ack), "source_restored")
		c.taken()
	}},
	{name: "a source port of a connection that the backend ended first", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		c.arrives(tcp(c.remote, c.source(), fin|ack)).becomes(tcp(c.remote, c.client, fin|ack), "source_restored")
		c.clientSays(fin|ack, c.external, c.remote, "flow_kept")
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.remote), "translated")
		// The backend keeps the port in TIME_WAIT, for the timeout of a closed flow.
		c.leaves(c.opens(c.other, c.remote)).dropped("ports_exhausted")
		c.rig.age(timeouts.TCPClosed + time.Second)
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.remote), "flow_kept")
		c.leaves(c.opens(c.other, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
	}},
	{name: "a port that the last connection of the same ends had", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		c.arrives(tcp(c.remote, c.source(), fin|ack)).becomes(tcp(c.remote, c.client, fin|ack), "source_restored")
		c.clientSays(fin|ack, c.external, c.remote, "flow_kept")
		c.clientSays(syn, c.external, c.remote, "translated")
		c.answer(c.client, c.external, c.remote)
	}},
	{name: "an unconfirmed flow whose source port another has by now", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.remote), "translated")
		c.leaves(c.opens(c.client, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
		c.rig.lose(func(k flowKey, _ flow) bool { return k.kind == maps.FlowKeyIn && k.src == newEnd(c.remote) })
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.remote), "translated")
		c.leaves(c.opens(c.other, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
		c.leaves(c.opens(c.client, c.remote)).dropped("ports_exhausted")
	}},
	{name: "an unconfirmed flow whose entry on the wire is lost", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.remote), "translated")
		for range 2 {
			c.leaves(c.opens(c.client, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
			c.rig.lose(func(k flowKey, _ flow) bool { return k.kind == maps.FlowKeyIn && k.src == newEnd(c.remote) })
		}
		c.leaves(c.opens(c.client, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
	}},
	{name: "a source port that netfilter chooses for another", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		source := c.source()
		c.leaves(c.opens(source, c.remote)).dropped("ports_exhausted") // there is no other port
		c.arrives(c.continues(c.remote, source)).becomes(c.continues(c.remote, c.client), "source_restored")
		// Now the flow has expired.
		c.rig.age(timeouts.TCPEstablished + time.Second)
		c.leaves(c.continues(source, c.other)).passes("egress_passed")
		c.leaves(c.opens(source, c.remote)).passes("egress_passed")
		c.arrives(c.continues(c.remote, source)).passes("local_flow")
	}},
	{name: "a source port that netfilter has chosen for another before", config: twoPorts, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		second := at(c.source(), firstPort+1)
		c.leaves(c.opens(second, c.remote)).passes("egress_passed")
		c.arrives(c.continues(c.remote, second)).passes("local_flow")
		c.open(c.client, c.external, c.remote)
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.remote), "translated")
		for range 2 { // in total, longer than the timeout of an unused entry
			c.rig.age(4 * time.Second)
			c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.remote), "flow_kept")
			c.leaves(c.opens(c.other, c.remote)).dropped("ports_exhausted")
			c.arrives(c.continues(c.remote, second)).passes("local_flow")
		}
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
		c.leaves(c.opens(second, c.remote)).passes("egress_passed")
		c.rig.age(timeouts.TCPNew + time.Second)
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.remote), "translated")
		if c.proto == protoTCP { // the first client's flow still has the first port
			c.leaves(c.opens(c.other, c.remote)).becomes(c.opens(second, c.remote), "source_translated")
		}
	}},
	{name: "what netfilter masquerades behind a source port comes from another", config: twoPorts, steps: func(c *play) {
		source, second := c.remapped()
		c.arrives(c.continues(c.remote, second)).becomes(c.continues(c.remote, source), "source_restored")
		for range 2 {
			c.leaves(c.continues(source, c.remote)).becomes(c.continues(second, c.remote), "source_translated")
			c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
		}
		if left := c.rig.flows(fresh); len(left) > 0 { // both are confirmed: a flood cannot evict them
			c.Fatalf("not confirmed: %v", left)
		}
		c.arrives(c.continues(c.remote, second)).becomes(c.continues(c.remote, source), "source_restored")
		// When the remapped connection has ended, other flows can get its ports, and the next
		// connection from its source is remapped again.
		c.rig.age(timeouts.UDPEstablished - slack)
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
		if c.proto == protoTCP {
			c.arrives(tcp(c.remote, second, rst)).becomes(tcp(c.remote, source, rst), "source_restored")
		} else {
			c.rig.age(2 * time.Second)
		}
		c.leaves(c.opens(source, c.remote)).becomes(c.opens(second, c.remote), "source_translated")
		c.rig.age(timeouts.TCPEstablished + time.Second)
		c.leaves(c.opens(source, c.remote)).passes("egress_passed")
		c.arrives(c.continues(c.remote, source)).passes("local_flow")
		c.arrives(c.continues(c.remote, second)).passes("no_frontend")
	}},
	{name: "a false address of what netfilter masquerades confirms nothing", config: twoPorts, proto: protoTCP, steps: func(c *play) {
		// The backend's address also has a service.
		c.world.add(frontend{addr: at(c.remote, 9999), proto: c.proto, service: 99}, map[uint32]endpoint{99: {addr: c.local}})
		source, second := c.remapped()
		c.arrives(c.continues(c.remote, second)).becomes(c.continues(c.remote, source), "source_restored")
		before := len(c.rig.flows(confirmed))
		for _, number := range []uint32{0, lastAck, firstSeq, firstSeq + 1, 0x80000000} {
			p := tcp(source, c.remote, ack).with(func(p *pkt) { p.ack = number })
			c.arrives(p).becomes(p, "flow_kept")
			if n := len(c.rig.flows(confirmed)); n != before {
				c.Fatalf("acknowledgement %d confirmed %d entries", number, n-before)
			}
		}
		c.leaves(c.continues(source, c.remote)).becomes(c.continues(second, c.remote), "source_translated")
		if n := len(c.rig.flows(confirmed)); n != before+3 {
			c.Fatalf("the client's own packet confirmed %d entries, want 3", n-before)
		}
	}},
	{name: "a source port of a connection that was reset, which netfilter chooses", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		c.clientSays(rst, c.external, c.remote, "flow_kept")
		c.leaves(c.continues(c.source(), c.remote)).passes("egress_passed")
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
		c.rig.age(2 * time.Second) // a packet after the RST shows that the connection was not reset
		c.clientSays(rst, c.external, c.remote, "flow_kept")
		c.leaves(c.opens(c.source(), c.remote)).passes("egress_passed")
		c.arrives(tcp(c.remote, c.source(), syn|ack)).passes("local_flow")
	}},
	{name: "what comes late to a frontend whose client port inside another has by now", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.backendSays(fin|ack, c.external, c.local)
		c.clientSays(fin|ack, c.external, c.local, "flow_kept")
		c.clientSays(ack, c.external, c.local, "flow_kept")
		c.arrives(c.opens(c.client, c.loadBalancer)).becomes(c.opens(c.client, c.local), "translated")
		c.arrives(tcp(c.client, c.external, fin|ack)).dropped("flow_over")
		c.arrives(c.continues(c.client, c.loadBalancer)).becomes(c.continues(c.client, c.local), "flow_kept")
	}},
}

// remapped opens a flow to another node, then a connection that netfilter masquerades to
// that flow's SNAT port: it is remapped to the second port.
func (c *play) remapped() (source, second netip.AddrPort) {
	c.Helper()
	c.serve(c.world, c.proto, 1, c.remote)
	c.load()
	source, second = c.source(), at(c.source(), firstPort+1)
	c.leaves(c.opens(second, c.remote)).passes("egress_passed") // so that the flow gets the first port
	c.open(c.client, c.external, c.remote)
	c.rig.age(timeouts.TCPNew + time.Second)
	c.arrives(c.continues(c.remote, source)).becomes(c.continues(c.remote, c.client), "source_restored")
	c.leaves(c.opens(source, c.remote)).becomes(c.opens(second, c.remote), "source_translated")
	return source, second
}

// taken checks that another client gets the SNAT port of the first one's closed flow, and
// that later packets of the first flow are not taken for the new one's.
func (c *play) taken() {
	c.Helper()
	c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.remote), "translated")
	c.leaves(c.opens(c.other, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
	c.leaves(c.continues(c.client, c.remote)).dropped("flow_over")
	c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.other), "source_restored")
	c.leaves(c.continues(c.remote, c.other)).becomes(c.continues(c.external, c.other), "reply_restored")
}
