// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"testing"
)

// play is a case of the table under way: one family, one protocol, one rig.
type play struct {
	testing.TB
	plan
	rig   *rig
	world *world
	proto uint8
	// reached collects reasons over all cases.
	reached map[string]bool
}

// step is a packet that was given to a program. Every check also demands that the run
// was counted under that one reason, and nothing else.
type step struct {
	c       *play
	hook    hook
	in, out []byte // from the IP header on
	frame   []byte
	got     result
	counted map[string]uint64
}

// arrives gives a packet to the ingress program.
func (c *play) arrives(p pkt) *step { c.Helper(); return c.raw(ingress, p.bytes()) }

// leaves gives a packet to the egress program.
func (c *play) leaves(p pkt) *step { c.Helper(); return c.raw(egress, p.bytes()) }

func (c *play) raw(h hook, packet []byte) *step {
	c.Helper()
	return c.frame(h, c.rig.frame(h, packet))
}

// trims says that packets become shorter from here on. The kernel then takes a device's
// sum for gone, and BPF_PROG_TEST_RUN compares it all the same.
func (c *play) trims() {
	if c.rig.flags == checkComplete {
		c.Skip("an answer that is shorter than the packet has no sum of a device")
	}
}

func (c *play) frame(h hook, frame []byte) *step {
	c.Helper()
	s := &step{c: c, hook: h, frame: frame}
	before := c.rig.counts()
	s.got = c.rig.run(h, frame)
	s.counted = since(before, c.rig.counts())
	s.in, s.out = c.packet(frame), c.packet(s.got.data)
	return s
}

// packet is a frame without its Ethernet header.
func (c *play) packet(frame []byte) []byte {
	if c.rig.device.NoEthernet {
		return bytes.Clone(frame)
	}
	return bytes.Clone(frame[min(len(frame), ethLen):])
}

// becomes: the packet goes on, and is that one now.
func (s *step) becomes(want pkt, reason string) {
	s.c.Helper()
	s.ends(unspec, reason)
	s.is(want.bytes())
}

// passes: the packet goes on as it was.
func (s *step) passes(reason string) {
	s.c.Helper()
	s.ends(unspec, reason)
	s.is(s.in)
}

// dropped: nobody sees the packet any more.
func (s *step) dropped(reason string) {
	s.c.Helper()
	s.ends(shot, reason)
}

// answered: this packet goes back by the device, to the host that the other came from.
func (s *step) answered(want pkt, reason string) {
	s.c.Helper()
	s.ends(redirect, reason)
	if s.c.rig.device.NoEthernet && want.proto != protoTCP {
		return // to BPF_PROG_TEST_RUN there is an Ethernet header, and room is made behind it
	}
	s.is(want.bytes())
	if s.c.rig.device.NoEthernet {
		return
	}
	got, in := s.got.data, s.frame
	if !bytes.Equal(got[:6], in[6:12]) || !bytes.Equal(got[6:12], in[:6]) || !bytes.Equal(got[12:14], in[12:14]) {
		s.c.Errorf("the answer to a frame with Ethernet header %x has %x", in[:ethLen], got[:ethLen])
	}
}

func (s *step) ends(verdict uint32, reason string) {
	s.c.Helper()
	s.c.reached[reason] = true
	if s.got.verdict != verdict {
		s.c.Errorf("%s of %s: verdict %d, want %d", s.hook, describe(s.in), int32(s.got.verdict), int32(verdict))
	}
	if want := map[string]uint64{reason: 1}; !maps.Equal(s.counted, want) {
		s.c.Errorf("%s of %s: counted %v, want %v", s.hook, describe(s.in), s.counted, want)
	}
	if s.c.Failed() {
		s.c.FailNow()
	}
}

func (s *step) is(want []byte) {
	s.c.Helper()
	if !bytes.Equal(s.out, want) {
		s.c.Fatalf("%s of %s\n     %x\nis   %s\n     %x\nwant %s\n     %x", s.hook, describe(s.in), s.in,
			describe(s.out), s.out, describe(want), want)
	}
	if !s.c.rig.device.NoEthernet && s.got.verdict == unspec && !bytes.Equal(s.got.data[:ethLen], s.frame[:ethLen]) {
		s.c.Errorf("the Ethernet header became %x", s.got.data[:ethLen])
	}
}

// describe says what a packet is, as far as it can be read.
func describe(b []byte) string {
	v, kind := readPacket(b, 0)
	name := map[uint8]string{protoTCP: "TCP", protoUDP: "UDP", protoICMP: "ICMP", protoICMP6: "ICMPv6"}[v.proto]
	if name == "" {
		name = fmt.Sprintf("protocol %d", v.proto)
	}
	text := fmt.Sprintf("%s %s → %s", name, v.src, v.dst)
	if kind == isPiece {
		text += fmt.Sprintf(" (a piece of %#x)", v.id)
	}
	if v.proto == protoTCP && kind == isTransport {
		text += fmt.Sprintf(" flags %#x", v.flags)
	}
	return fmt.Sprintf("%s (%d bytes)", text, len(b))
}

// opens is the first packet of a connection or flow, continues a later one.
func (c *play) opens(src, dst netip.AddrPort) pkt {
	if c.proto == protoTCP {
		return tcp(src, dst, syn).with(func(p *pkt) { p.options = []byte{2, 4, 5, 0xb4} })
	}
	return udp(src, dst, "question")
}

// accepts is a backend's first answer.
func (c *play) accepts(src, dst netip.AddrPort) pkt {
	if c.proto == protoTCP {
		return tcp(src, dst, syn|ack)
	}
	return udp(src, dst, "an answer")
}

func (c *play) continues(src, dst netip.AddrPort) pkt {
	if c.proto == protoTCP {
		return tcp(src, dst, ack|psh).with(func(p *pkt) { p.payload = []byte("more") })
	}
	return udp(src, dst, "more of it")
}

// source is where packets to other nodes come from: the one port that there is.
func (c *play) source() netip.AddrPort { return netip.AddrPortFrom(c.wire, firstPort) }

// firstPort is the first of the source ports, and in most cases the only one.
const firstPort = 61000

// at gives an address another port.
func at(a netip.AddrPort, port uint16) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), port) }
