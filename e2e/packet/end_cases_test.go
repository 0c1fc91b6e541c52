// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"time"

	"shunt/maps"
)

// established opens a connection to the backend in a new world.
func (c *play) established(b netip.AddrPort) {
	c.Helper()
	c.rig.clear()
	c.world = newWorld()
	c.serve(c.world, c.proto, 1, b)
	c.load()
	c.open(c.client, c.external, b)
	c.leaves(c.continues(b, c.client)).becomes(c.continues(c.external, c.client), "reply_restored")
}

// unbelievable returns FINs and RSTs of a sender that does not know the connection's
// sequence numbers.
func (c *play) unbelievable() (all []pkt) {
	for _, flags := range []uint8{rst, rst | ack, fin | ack, fin, rst | fin | ack} {
		for _, at := range []point{{lastAck - 1, firstSeq}, {lastAck + window, firstSeq}, {0x80000000, firstSeq},
			{lastAck + 1, firstSeq + segment + 1}, {lastAck + 1, windowBehind - 1}} {
			p := tcp(netip.AddrPort{}, netip.AddrPort{}, flags)
			p.seq, p.ack = at.seq, at.ack
			all = append(all, p)
		}
	}
	for _, flags := range []uint8{rst, fin} { // without an acknowledgement
		all = append(all, tcp(netip.AddrPort{}, netip.AddrPort{}, flags).with(func(p *pkt) { p.seq, p.ack = lastAck+1, firstSeq }))
	}
	return append(all, tcp(netip.AddrPort{}, netip.AddrPort{}, rst|ack).with(func(p *pkt) { p.seq, p.ack = lastAck+1, firstSeq-1 }))
}

// believable returns FINs and RSTs of a sender that knows them.
func (c *play) believable() (all []pkt) {
	for _, end := range []struct {
		flags uint8
		at    point
	}{
		{rst, point{lastAck, 0}}, {rst | ack, point{lastAck, 0x12345}}, {rst | ack, point{lastAck + window - 1, firstSeq}},
		{rst | ack, point{lastAck + 1, firstSeq + segment}}, {fin | ack, point{lastAck, firstSeq}},
		{fin | ack, point{lastAck + window - 1, firstSeq + segment}}, {fin | ack, point{lastAck, windowBehind}},
	} {
		p := tcp(netip.AddrPort{}, netip.AddrPort{}, end.flags)
		p.seq, p.ack = end.at.seq, end.at.ack
		all = append(all, p)
	}
	return all
}

// sides sends p, a FIN or RST, as each side, and checks that every entry then records `said` of
// it. If said is not 0, each side gets a new connection.
func (c *play) sides(b netip.AddrPort, p pkt, said uint8) {
	c.Helper()
	want := map[uint8]uint8{fin: maps.SaidFIN, rst: maps.SaidRST, 0: 0}[said&(fin|rst)]
	send := []func(){
		func() { c.arrives(p.as(c.client, c.external)).becomes(p.as(c.client, b), "flow_kept") },
		func() { c.leaves(p.as(b, c.client)).becomes(p.as(c.external, c.client), "reply_restored") },
		func() { c.arrives(p.as(b, c.source())).becomes(p.as(b, c.client), "source_restored") },
	}
	for i, from := range send {
		if i == 2 && b != c.remote {
			continue
		}
		if said != 0 {
			c.established(b)
		}
		from()
		for k, f := range c.rig.flows(confirmed) {
			client, backend := f.clientSaid&(maps.SaidFIN|maps.SaidRST), f.backendSaid&(maps.SaidFIN|maps.SaidRST)
			if i == 0 {
				client, backend = backend, client
			}
			if client != 0 || backend != want {
				c.Fatalf("flags %#x at %d, ack %d, side %d: %v has client %#x, backend %#x, want %#x", p.flags, p.seq, p.ack, i, k,
					f.clientSaid, f.backendSaid, want)
			}
		}
		if said == 0 { // and both sides' sequence numbers are known again
			c.arrives(c.continues(c.client, c.external)).becomes(c.continues(c.client, b), "flow_kept")
			c.leaves(c.continues(b, c.client)).becomes(c.continues(c.external, c.client), "reply_restored")
		}
	}
}

// misleading returns packets with a side's address from a sender that does not know the
// sequence numbers.
func (c *play) misleading() (all []pkt) {
	for _, flags := range []uint8{ack, syn, fin | ack, syn | ack, 0} {
		for _, at := range []point{{0x80000000, firstSeq}, {lastAck, 0x80000000}, {lastAck + window + 1, firstSeq},
			{lastAck, firstSeq + segment + 1}, {0x80000000, 0xc0000000}} {
			all = append(all, tcp(netip.AddrPort{}, netip.AddrPort{}, flags).with(func(p *pkt) { p.seq, p.ack = at.seq, at.ack }))
		}
	}
	return all
}

// endsAfter checks that the forged packet p is passed on and has no effect: the other side's FIN,
// end, is believed after it.
func (c *play) endsAfter(b netip.AddrPort, p, passed, end pkt) {
	c.Helper()
	c.established(b)
	send, reason := c.arrives, "flow_kept"
	if p.src == b {
		send, reason = c.leaves, "reply_restored"
	}
	send(p).becomes(passed, reason)
	if end.src == b {
		c.leaves(end).becomes(end.as(c.external, c.client), "reply_restored")
	} else {
		c.arrives(end).becomes(end.as(c.client, b), "flow_kept")
	}
	f := c.clientEntry()
	said := f.clientSaid
	if end.src == b {
		said = f.backendSaid
	}
	if said&maps.SaidFIN == 0 {
		c.Fatalf("after flags %#x at %d, ack %d of a false sender, the other side's FIN is not believed: %+v", p.flags, p.seq, p.ack, f)
	}
}

// clientEntry returns the entry under the key of the client's packets.
func (c *play) clientEntry() flow {
	c.Helper()
	k := flowKey{kind: maps.FlowKeyIn, proto: c.proto, src: newEnd(c.client), dst: newEnd(c.external)}
	f, ok := c.rig.flows(confirmed)[k]
	if !ok {
		c.Fatalf("no confirmed flow %v", k)
	}
	return f
}

// endCases are about which FINs and RSTs are believed.
var endCases = []packetCase{
	{name: "a SYN when the backend serves no more", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		second := at(c.local, 8081)
		c.replaceBackend(second)
		c.clientSays(ack, c.external, c.local, "flow_kept")
		// The SYN may be forged. It goes to the flow's backend, whose answer shows that the
		// connection is alive.
		for range 3 {
			c.clientSays(syn, c.external, c.local, "flow_kept")
			c.clientSays(syn, c.external, c.local, "flow_kept")
			c.backendSays(ack, c.external, c.local)
			c.rig.age(2 * time.Second)
		}
		c.clientSays(syn, c.external, c.local, "flow_kept")
		// The client sends an ACK, so it has not begun a new connection: the SYN was forged.
		c.clientSays(ack, c.external, c.local, "flow_kept")
		c.rig.age(2 * time.Second)
		c.clientSays(syn, c.external, c.local, "flow_kept")
		// The backend leaves this SYN and a repetition of it unanswered: the backend is gone, and
		// the next SYN begins a new flow.
		c.rig.age(time.Second)
		c.clientSays(syn, c.external, c.local, "flow_kept")
		c.rig.age(time.Second)
		c.clientSays(syn, c.external, second, "translated")
		c.answer(c.client, c.external, second)
		c.clientSays(ack, c.external, second, "flow_kept")
	}},
	{name: "SYNs that a backend has no leave to answer", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		c.replaceBackend(at(c.local, 8081))
		// Linux sends one challenge ACK in 500 ms: it does not answer the second SYN.
		for range 3 {
			c.rig.age(2 * time.Second)
			c.clientSays(syn, c.external, c.local, "flow_kept")
			c.backendSays(ack, c.external, c.local)
			c.rig.age(400 * time.Millisecond)
			c.clientSays(syn, c.external, c.local, "flow_kept")
			c.rig.age(900 * time.Millisecond)
			c.clientSays(syn, c.external, c.local, "flow_kept")
			c.backendSays(ack, c.external, c.local)
		}
	}},
	{name: "numbers of a sender with a false address", proto: protoTCP, steps: func(c *play) {
		for _, b := range []netip.AddrPort{c.local, c.remote} {
			for _, p := range c.misleading() {
				c.endsAfter(b, p.as(c.client, c.external), p.as(c.client, b), tcp(b, c.client, fin|ack))
			}
		}
		for _, p := range c.misleading() {
			c.endsAfter(c.local, p.as(c.local, c.client), p.as(c.external, c.client), tcp(c.client, c.external, fin|ack))
		}
	}},
	{name: "numbers of a new connection between the same ends", proto: protoTCP, steps: func(c *play) {
		c.established(c.local)
		const mine, theirs = 0x70000000, 0xc0000000
		say := func(src, dst, from, to netip.AddrPort, flags uint8, seq, number uint32, reason string) {
			c.Helper()
			p := tcp(src, dst, flags).with(func(p *pkt) { p.seq, p.ack = seq, number })
			send := c.arrives
			if src == c.local {
				send = c.leaves
			}
			send(p).becomes(p.as(from, to), reason)
		}
		client := func(flags uint8, seq, number uint32) {
			c.Helper()
			say(c.client, c.external, c.client, c.local, flags, seq, number, "flow_kept")
		}
		backend := func(flags uint8, seq, number uint32) {
			c.Helper()
			say(c.local, c.client, c.external, c.client, flags, seq, number, "reply_restored")
		}
		client(syn, mine, 0)
		backend(syn|ack, theirs, mine+1)
		client(ack, mine+1, theirs+1)
		backend(ack, theirs+1, mine+1)
		client(fin|ack, mine+1, theirs+1)
		backend(fin|ack, theirs+1, mine+2)
		if f := c.clientEntry(); !f.closed() {
			c.Fatalf("the new connection's ends are not believed: %+v", f)
		}
	}},
	{name: "a SYN when the backend is gone and says so", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		second := at(c.local, 8081)
		c.replaceBackend(second)
		s := tcp(c.client, c.external, syn).with(func(p *pkt) { p.seq = 5000000 })
		c.arrives(s).becomes(s.as(c.client, c.local), "flow_kept")
		r := tcp(c.local, c.client, rst|ack).with(func(p *pkt) { p.seq, p.ack = 0, 5000001 })
		c.leaves(r).becomes(r.as(c.external, c.client), "reply_restored")
		c.arrives(s).becomes(s.as(c.client, second), "translated")
	}},
	{name: "a SYN after the client's FIN when the backend serves no more", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.open(c.client, c.external, c.local)
		second := at(c.local, 8081)
		c.replaceBackend(second)
		c.clientSays(fin|ack, c.external, c.local, "flow_kept")
		c.clientSays(syn, c.external, second, "translated")
	}},
	{name: "ends that the other side would not believe", proto: protoTCP, steps: func(c *play) {
		for _, b := range []netip.AddrPort{c.local, c.remote} {
			c.established(b)
			for _, p := range c.unbelievable() {
				c.sides(b, p, 0)
			}
			c.rig.age(timeouts.TCPCloseWait + time.Second) // nor is its timeout shorter
			c.clientSays(syn, c.external, b, "flow_kept")
			c.clientSays(ack, c.external, b, "flow_kept")
		}
	}},
	{name: "ends that the other side would believe", proto: protoTCP, steps: func(c *play) {
		for _, b := range []netip.AddrPort{c.local, c.remote} {
			for _, p := range c.believable() {
				c.sides(b, p, p.flags)
			}
		}
	}},
	{name: "a reset before anything is known of the other side", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
		r := tcp(c.client, c.external, rst).with(func(p *pkt) { p.seq = firstSeq + 1 })
		c.arrives(r).becomes(r.as(c.client, c.local), "flow_kept")
		c.clientSays(syn, c.external, c.local, "translated")
	}},
	{name: "what a sender with a false address can't confirm", proto: protoTCP, steps: func(c *play) {
		for _, b := range []netip.AddrPort{c.local, c.remote} {
			c.rig.clear()
			c.world = newWorld()
			c.serve(c.world, c.proto, 1, b)
			c.load()
			c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, b), "translated")
			c.answer(c.client, c.external, b)
			for _, blind := range []struct {
				flags uint8
				ack   uint32
			}{
				{0, 0}, {psh, 0}, {fin, firstSeq + 1}, {rst, 0}, {ack, 0x80000000}, {ack | psh, firstSeq + segment + 1},
				{ack, 1<<32 + firstSeq - segment - 1}, {fin | ack, 0x40000000},
			} {
				p := tcp(c.client, c.external, blind.flags).with(func(p *pkt) { p.ack = blind.ack })
				c.arrives(p).becomes(p.as(c.client, b), "flow_kept")
				if n := len(c.rig.flows(confirmed)); n != 0 {
					c.Fatalf("flags %#x with acknowledgement %d confirmed %d entries", blind.flags, blind.ack, n)
				}
			}
		}
	}},
	{name: "what confirms a connection is near what the backend sent", proto: protoTCP, steps: func(c *play) {
		c.serve(c.world, c.proto, 1, c.local)
		c.load()
		for _, number := range []uint32{firstSeq, firstSeq + 1, firstSeq + segment, 1<<32 + firstSeq - segment} {
			c.rig.clear()
			c.arrives(c.opens(c.client, c.external)).becomes(c.opens(c.client, c.local), "translated")
			c.answer(c.client, c.external, c.local)
			p := tcp(c.client, c.external, ack).with(func(p *pkt) { p.ack = number })
			c.arrives(p).becomes(p.as(c.client, c.local), "flow_kept")
			if n := len(c.rig.flows(confirmed)); n != 2 {
				c.Fatalf("acknowledgement %d confirmed %d entries, want 2", number, n)
			}
		}
	}},
}
