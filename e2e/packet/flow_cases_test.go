// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"time"

	"shunt/maps"
)

// open opens a flow from the client to a frontend, up to the client's answer to the
// backend's first packet.
func (c *play) open(client, frontend, b netip.AddrPort) {
	c.Helper()
	c.arrives(c.opens(client, frontend)).becomes(c.opens(client, b), "translated")
	c.answer(client, frontend, b)
	c.arrives(c.continues(client, frontend)).becomes(c.continues(client, b), "flow_kept")
}

// answer runs the backend's first answer.
func (c *play) answer(client, frontend, b netip.AddrPort) {
	c.Helper()
	if b.Addr() == c.remote.Addr() {
		c.leaves(c.opens(client, b)).becomes(c.opens(c.source(), b), "source_translated")
		c.arrives(c.accepts(b, c.source())).becomes(c.accepts(b, client), "source_restored")
	}
	c.leaves(c.accepts(b, client)).becomes(c.accepts(frontend, client), "reply_restored")
}

// lifetime returns the timeout of a flow.
func (c *play) lifetime(established bool) time.Duration {
	switch {
	case c.proto == protoTCP && established:
		return timeouts.TCPEstablished
	case c.proto == protoTCP:
		return timeouts.TCPNew
	case established:
		return timeouts.UDPEstablished
	}
	return timeouts.UDPNew
}

// clientSays sends a TCP packet with these flags from the client of an open flow.
func (c *play) clientSays(flags uint8, frontend, b netip.AddrPort, reason string) {
	c.Helper()
	c.arrives(tcp(c.client, frontend, flags)).becomes(tcp(c.client, b, flags), reason)
}

func (c *play) backendSays(flags uint8, frontend, b netip.AddrPort) {
	c.Helper()
	c.leaves(tcp(b, c.client, flags)).becomes(tcp(frontend, c.client, flags), "reply_restored")
}

// replaceBackend replaces the endpoint of the service, which has id 10, by another one with id
// 19. Id 10 is freed.
func (c *play) replaceBackend(with netip.AddrPort) {
	c.Helper()
	c.world.backends = map[uint32]endpoint{}
	c.serve(c.world, c.proto, 1, with)
	c.world.change(1, func(f *frontend) { f.inside, f.outside = []uint32{19}, []uint32{19} })
	b := c.world.backends[10]
	delete(c.world.backends, 10)
	c.world.backends[19] = b
	c.load()
}

var flowCases = []packetCase{
	{name: "an established flow keeps its backend, which left the set", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		second := at(c.local, 8081)
		c.world.backends[11] = endpoint{addr: second, proto: c.proto, flags: maps.ClusterSet | maps.LocalSet | maps.OnNode, service: 1}
		c.world.backends[10] = endpoint{addr: c.local, proto: c.proto, flags: maps.OnNode | maps.Terminating, service: 1}
		c.world.change(1, func(f *frontend) { f.outside = []uint32{11} })
		c.load()
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.local), "flow_kept")
		c.leaves(c.continues(c.local, c.client)).becomes(c.continues(c.external, c.client), "reply_restored")
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, second), "translated")
	}},
	{name: "an established flow goes on without the service", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		c.world = newWorld()
		c.load()
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.remote), "flow_kept")
		c.leaves(c.continues(c.client, c.remote)).becomes(c.continues(c.source(), c.remote), "source_translated")
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
		c.leaves(c.continues(c.remote, c.client)).becomes(c.continues(c.external, c.client), "reply_restored")
	}},
	{name: "a UDP flow whose backend is gone", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		second := at(c.local, 8081)
		c.replaceBackend(second)
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, second), "translated")
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, second), "flow_kept")
		c.answer(c.client, c.external, second)
		// Now without any endpoint.
		c.world.backends = map[uint32]endpoint{}
		c.world.change(1, func(f *frontend) { f.inside, f.outside = nil, nil })
		c.load()
		c.refused(c.continues(c.client, c.external), "no_endpoint")
	}},
	{name: "a UDP flow whose address is another service's", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		second := at(c.local, 8081)
		c.serve(c.world, c.proto, 2, second)
		c.load()
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, second), "translated")
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, second), "flow_kept")
	}},
	{name: "a UDP flow whose address is another service's with the same endpoint", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		w := newWorld() // the flow's endpoint is one of several
		var at []netip.AddrPort
		for i := range uint16(7) {
			at = append(at, netip.AddrPortFrom(c.local.Addr(), c.local.Port()-3+i))
		}
		c.serve(w, c.proto, 2, at...)
		c.world = w
		c.load()
		for range 2 {
			c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.local), "flow_kept")
			c.leaves(c.continues(c.local, c.client)).becomes(c.continues(c.external, c.client), "reply_restored")
		}
		// The new service does not admit this client.
		c.world.change(2, func(f *frontend) { f.flags |= maps.SourceRanges })
		c.world.sources[2] = []netip.Prefix{netip.PrefixFrom(c.other.Addr(), c.other.Addr().BitLen())}
		c.load()
		c.arrives(c.continues(c.client, c.external)).dropped("source_range")
	}},
	{name: "a record that is another endpoint's by now", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		second := at(c.local, 8081)
		c.world.backends[10] = endpoint{addr: second, proto: c.proto, flags: maps.ClusterSet | maps.OnNode, service: 1}
		c.load()
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, second), "translated")
	}},
	{name: "a late answer of a backend that the client has left", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
		second := at(c.local, 8081)
		c.replaceBackend(second)
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, second), "translated")
		c.leaves(c.accepts(c.local, c.client)).becomes(c.accepts(c.external, c.client), "reply_restored")
		// The client's entry belongs to the new flow, and stays so.
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, second), "flow_kept")
	}},
	{name: "a SYN on an open connection", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "flow_kept")
		c.answer(c.client, c.external, c.local)
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "flow_kept")
		c.clientSays(fin|ack, c.external, c.local, "flow_kept")
		c.clientSays(syn, c.external, c.local, "flow_kept") // after a FIN of one side only
	}},
	{name: "a SYN after both sides' FIN", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.backendSays(fin|ack, c.external, c.local)
		c.clientSays(fin|ack, c.external, c.local, "flow_kept")
		c.backendSays(ack, c.external, c.local)
		c.clientSays(syn, c.external, c.local, "translated")
		c.clientSays(syn, c.external, c.local, "flow_kept")
		if n := c.rig.kernel.Connections(10); n != 2 {
			c.Errorf("%d connections were counted, want 2", n)
		}
	}},
	{name: "a SYN after one side's FIN, which the backend accepts", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		for _, ended := range []func(){
			func() { c.backendSays(fin|ack, c.external, c.local) },
			func() { c.clientSays(fin|ack, c.external, c.local, "flow_kept") },
		} {
			c.rig.clear()
			c.open(c.client, c.external, c.local)
			ended()
			c.clientSays(syn, c.external, c.local, "flow_kept")
			c.backendSays(syn|ack, c.external, c.local)
			c.clientSays(ack, c.external, c.local, "flow_kept")
			// It is established, with the full timeout: no FIN of the first connection is
			// left.
			c.rig.age(timeouts.TCPEstablished - slack)
			c.clientSays(syn, c.external, c.local, "flow_kept")
			c.clientSays(ack, c.external, c.local, "flow_kept")
			// A half-closed flow is not a closed one.
			c.clientSays(fin|ack, c.external, c.local, "flow_kept")
			c.rig.age(timeouts.TCPCloseWait - slack)
			c.clientSays(syn, c.external, c.local, "flow_kept")
		}
	}},
	{name: "a SYN after the backend's FIN, and no more of the handshake", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.backendSays(fin|ack, c.external, c.local)
		c.clientSays(syn, c.external, c.local, "flow_kept")
		c.backendSays(syn|ack, c.external, c.local)
		c.rig.age(timeouts.TCPNew - slack)
		c.clientSays(syn, c.external, c.local, "flow_kept")
		c.rig.age(timeouts.TCPNew + time.Second)
		c.clientSays(syn, c.external, c.local, "translated")
	}},
	{name: "a SYN after the backend's FIN, which the backend does not accept", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.backendSays(fin|ack, c.external, c.local)
		c.clientSays(syn, c.external, c.local, "flow_kept")
		c.backendSays(ack, c.external, c.local)
		c.clientSays(ack, c.external, c.local, "flow_kept")
		c.backendSays(syn|ack, c.external, c.local) // without a SYN
		c.rig.age(timeouts.TCPCloseWait + time.Second)
		c.clientSays(syn, c.external, c.local, "translated")
	}},
	{name: "a SYN after a RST", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.backendSays(rst, c.external, c.local)
		c.clientSays(syn, c.external, c.local, "translated")
		c.answer(c.client, c.external, c.local)
		c.clientSays(rst|ack, c.external, c.local, "flow_kept")
		c.clientSays(syn, c.external, c.local, "translated")
	}},
	{name: "a RST that nobody believed", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.clientSays(rst, c.external, c.local, "flow_kept")
		c.rig.age(1500 * time.Millisecond)
		// A repeated RST does not show that the connection is alive.
		c.clientSays(rst, c.external, c.local, "flow_kept")
		c.clientSays(syn, c.external, c.local, "translated")
		c.answer(c.client, c.external, c.local)
		c.clientSays(rst, c.external, c.local, "flow_kept")
		c.rig.age(1500 * time.Millisecond)
		c.clientSays(ack, c.external, c.local, "flow_kept")
		c.clientSays(syn, c.external, c.local, "flow_kept")
	}},
	{name: "TCP of no flow", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		for _, flags := range []uint8{ack, syn | ack, rst, rst | ack, fin | ack, 0, syn | rst} {
			c.arrives(tcp(c.client, c.external, flags)).passes("no_flow")
		}
		c.arrives(tcp(c.client, at(c.clusterIP, 9), ack)).passes("no_flow")
		c.arrives(tcp(c.client, c.other, ack)).passes("no_frontend")
	}},
	{name: "a datagram from a node port's number", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.leaves(udp(c.node, c.other, "question")).passes("egress_passed")
		c.arrives(udp(c.other, c.node, "an answer")).passes("local_flow")
		c.arrives(udp(c.client, c.node, "an answer")).becomes(udp(c.client, c.local, "an answer"), "translated")
		c.rig.age(timeouts.UDPNew - slack)
		c.arrives(udp(c.other, c.node, "an answer")).passes("local_flow")
		c.rig.age(2 * time.Second)
		c.arrives(udp(c.other, c.node, "an answer")).becomes(udp(c.other, c.local, "an answer"), "translated")
	}},
	{name: "a datagram from another number of this node", proto: protoUDP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.leaves(udp(at(c.node, 9), c.other, "question")).passes("egress_passed")
		c.leaves(udp(c.client, c.other, "question")).passes("egress_passed")
		if len(c.rig.flows(fresh)) != 0 {
			c.Errorf("flows of nobody: %v", c.rig.flows(fresh))
		}
	}},
}
