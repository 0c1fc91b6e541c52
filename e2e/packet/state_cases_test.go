// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"net/netip"
	"time"

	"shunt/maps"
)

var stateCases = []packetCase{
	{name: "what confirms a flow", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.local), "flow_kept")
		for range 2 {
			c.leaves(c.accepts(c.local, c.client)).becomes(c.accepts(c.external, c.client), "reply_restored")
		}
		if c.proto == protoTCP { // the first packet again: the client has heard no answer
			c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "flow_kept")
		}
		if n := len(c.rig.flows(confirmed)); n != 0 {
			c.Fatalf("%d entries are confirmed before the client has answered", n)
		}
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.local), "flow_kept")
		if n := len(c.rig.flows(confirmed)); n != 2 {
			c.Fatalf("%d entries are confirmed when the client has answered, want 2", n)
		}
	}},
	{name: "a flow that waits too long for an answer", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		timeout := map[uint8]time.Duration{protoTCP: timeouts.TCPNew, protoUDP: timeouts.UDPNew}[c.proto]
		first := c.opens(c.client, c.external)
		c.arrives(first).becomes(c.opens(c.client, c.local), "translated")
		c.rig.age(timeout - slack)
		c.arrives(first).becomes(c.opens(c.client, c.local), "flow_kept")
		c.rig.age(timeout + time.Second)
		c.arrives(first).becomes(c.opens(c.client, c.local), "translated")
	}},
	{name: "an idle flow", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		timeout := map[uint8]time.Duration{protoTCP: timeouts.TCPEstablished, protoUDP: timeouts.UDPEstablished}[c.proto]
		c.open(c.client, c.external, c.local)
		c.rig.age(timeout - slack)
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "flow_kept")
		c.rig.age(timeout + time.Second)
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
	}},
	{name: "an answer that is past its flow's time", steps: func(c *play) {
		for _, b := range []netip.AddrPort{c.local, c.remote} {
			c.world = newWorld()
			c.serve(c.world, c.proto, 1, b)
			c.load()
			for _, established := range []bool{false, true} {
				c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, b), "translated")
				c.answer(c.client, c.external, b)
				if established {
					c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, b), "flow_kept")
				}
				c.rig.age(c.lifetime(established) - slack)
				c.leaves(c.continues(b, c.client)).becomes(c.continues(c.external, c.client), "reply_restored")
				c.rig.age(c.lifetime(established) + time.Second)
				c.leaves(c.continues(b, c.client)).passes("egress_passed")
				if b == c.remote {
					c.arrives(c.continues(b, c.source())).passes("no_frontend")
				}
				c.leaves(c.continues(c.client, b)).passes("egress_passed")
				c.rig.clear()
			}
		}
	}},
	{name: "a half-closed connection", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.clientSays(fin|ack, c.external, c.local, "flow_kept")
		c.rig.age(timeouts.TCPCloseWait - slack)
		c.clientSays(syn, c.external, c.local, "flow_kept")
		c.rig.age(timeouts.TCPCloseWait + time.Second)
		c.arrives(tcp(c.client, c.external, ack)).passes("no_flow")
		c.clientSays(syn, c.external, c.local, "translated")
	}},
	{name: "the time of last use, once a second", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		oldest := func() time.Duration {
			used := c.rig.now()
			for _, f := range c.rig.flows(confirmed) {
				used = min(used, f.used)
			}
			return time.Duration(c.rig.now() - used)
		}
		for _, s := range []func(){
			func() {
				c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.remote), "flow_kept")
			},
			func() {
				c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
			},
			func() {
				c.leaves(c.continues(c.remote, c.client)).becomes(c.continues(c.external, c.client), "reply_restored")
			},
		} {
			c.rig.age(3 * time.Second) // one packet updates all entries
			s()
			if d := oldest(); d > 2*time.Second {
				c.Fatalf("an entry has not been used for %v after a packet", d)
			}
		}
		before := c.rig.flows(confirmed)
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.remote), "flow_kept")
		for k, f := range c.rig.flows(confirmed) {
			if c.rig.now()-before[k].used < int64(time.Second) && f != before[k] {
				c.Errorf("entry %v was written again within a second", k)
			}
		}
	}},
	{name: "the client's entry is lost", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local, at(c.local, 8081), at(c.local, 8082), at(c.local, 8083))
		c.load()
		s := c.arrives(c.opens(c.client, c.external))
		v, _ := readPacket(s.out, 0)
		b := at(c.local, v.dst.port)
		s.becomes(c.opens(c.client, b), "translated")
		c.rig.lose(func(k flowKey, _ flow) bool { return k.kind == maps.FlowKeyIn })
		reason := map[uint8]string{protoTCP: "flow_kept", protoUDP: "translated"}[c.proto]
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, b), reason)
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, b), "flow_kept")
	}},
	{name: "entries are made again from the others", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		for _, lost := range []func(flowKey, flow) bool{
			func(k flowKey, _ flow) bool { return k.kind == maps.FlowKeyOut },
			func(k flowKey, _ flow) bool { return k.kind == maps.FlowKeyIn && k.src == newEnd(c.remote) },
		} {
			c.rig.lose(lost)
			c.rig.age(2 * time.Second)
			c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.remote), "flow_kept")
			c.recorded(true)
		}
		c.rig.lose(func(k flowKey, _ flow) bool { return k.kind == maps.FlowKeyIn && k.src == newEnd(c.client) })
		c.rig.age(2 * time.Second)
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
		c.recorded(true)
	}},
	{name: "no room for the client's entry of a flow", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.open(c.client, c.external, c.remote)
		c.rig.lose(func(k flowKey, _ flow) bool { return k.kind == maps.FlowKeyIn && k.src == newEnd(c.client) })
		c.rig.fill()
		c.arrives(c.continues(c.client, c.external)).dropped("flow_unrecorded")
	}},
	{name: "no room for confirmed flows", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.remote)
		c.load()
		c.rig.fill()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.remote), "translated")
		c.leaves(c.opens(c.client, c.remote)).becomes(c.opens(c.source(), c.remote), "source_translated")
		c.arrives(c.continues(c.remote, c.source())).becomes(c.continues(c.remote, c.client), "source_restored")
		c.leaves(c.continues(c.remote, c.client)).becomes(c.continues(c.external, c.client), "reply_restored")
		c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, c.remote), "unconfirmed")
		if n := len(c.rig.flows(fresh)); n != 3 {
			c.Errorf("%d entries of the flow, want 3", n)
		}
	}},
	{name: "an entry that is another frontend's by the time that it is read", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		services := c.rig.set.Map(maps.NameServices)
		key := func(a netip.AddrPort) maps.FrontendKey { return maps.NewFrontendKey(a.Addr(), a.Port(), c.proto) }
		var its, others maps.Frontend
		err := errors.Join(services.Lookup(key(c.external), &its), services.Lookup(key(c.loadBalancer), &others),
			services.Put(key(c.external), others))
		if err != nil {
			c.Fatal(err)
		}
		c.arrives(c.opens(c.client, c.external)).dropped("entry_changed")
		c.arrives(c.opens(c.client, c.loadBalancer)).becomes(c.opens(c.client, c.local), "translated")
		if err := services.Put(key(c.external), its); err != nil {
			c.Fatal(err)
		}
		c.arrives(c.opens(c.other, c.external)).becomes(c.opens(c.other, c.local), "translated")
	}},
	{name: "an entry that leads to another service's backend", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		b := c.world.backends[10]
		b.service = 2
		c.world.backends[10] = b
		c.load()
		c.arrives(c.opens(c.client, c.external)).dropped("entry_changed")
	}},
	{name: "affinity of a client from outside", steps: func(c *play) {
		first, second := c.local, at(c.local, 8081)
		c.serve(c.world, c.proto, 1, first, second)
		c.world.change(1, func(f *frontend) { f.affinity = 20 })
		c.load()
		s := c.arrives(c.opens(c.client, c.external))
		v, _ := readPacket(s.out, 0)
		kept := at(c.local, v.dst.port)
		s.becomes(c.opens(c.client, kept), "translated")
		// Affinity applies to every source port and frontend. Each connection restarts its
		// timeout.
		for i := range uint16(16) {
			c.rig.age(15 * time.Second)
			from := at(c.client, 50000+i)
			c.arrives(c.opens(from, c.loadBalancer)).becomes(c.opens(from, kept), "affinity_kept")
		}
		c.rig.age(19 * time.Second)
		c.arrives(c.opens(at(c.client, 50100), c.node)).becomes(c.opens(at(c.client, 50100), kept), "affinity_kept")
		// Other clients have their own affinity, and affinity expires.
		seen := map[uint16]bool{}
		for i := range uint16(32) {
			c.rig.age(21 * time.Second)
			s := c.arrives(c.opens(at(c.client, 51000+i), c.external))
			v, _ := readPacket(s.out, 0)
			seen[v.dst.port] = true
			s.becomes(c.opens(at(c.client, 51000+i), at(c.local, v.dst.port)), "translated")
		}
		if len(seen) != 2 {
			c.Errorf("32 connections after their affinity had ended all went to one of two backends")
		}
	}},
	{name: "affinity and packets that begin nothing", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.world.change(1, func(f *frontend) { f.affinity = 20 })
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
		c.rig.age(15 * time.Second)
		c.arrives(tcp(at(c.client, 50000), c.external, ack)).passes("no_flow")
		c.rig.age(6 * time.Second)
		c.arrives(c.opens(at(c.client, 50001), c.external)).becomes(c.opens(at(c.client, 50001), c.local), "translated")
		// Affinity has expired. A packet that begins no connection records none.
		c.rig.age(21 * time.Second)
		c.arrives(tcp(at(c.client, 50000), c.external, ack)).passes("no_flow")
		c.arrives(c.opens(at(c.client, 50002), c.external)).becomes(c.opens(at(c.client, 50002), c.local), "translated")
	}},
	{name: "affinity to a backend that new connections may not take", steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.world.change(1, func(f *frontend) { f.affinity = 20 })
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
		second := at(c.local, 8081)
		c.world.backends[11] = endpoint{addr: second, proto: c.proto, flags: maps.ClusterSet | maps.OnNode, service: 1}
		c.world.backends[10] = endpoint{addr: c.local, proto: c.proto, flags: maps.Terminating | maps.OnNode, service: 1}
		c.world.change(1, func(f *frontend) { f.outside = []uint32{11} })
		c.load()
		c.arrives(c.opens(at(c.client, 50000), c.external)).becomes(c.opens(at(c.client, 50000), second), "translated")
		c.arrives(c.opens(at(c.client, 50001), c.external)).becomes(c.opens(at(c.client, 50001), second), "affinity_kept")
	}},
}
