// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"fmt"
	stdmaps "maps"
	"net/netip"
	"testing"
)

// play is a running case of the table: one family, one protocol, one rig.
type play struct {
	testing.TB
	plan
	rig   *rig
	world *world
	proto uint8
	// reached collects the reasons of all cases.
	reached map[string]bool
}

// step is a packet that a program has handled. Every check also requires that the run was
// counted under that one reason only.
type step struct {
	c       *play
	hook    hook
	in, out []byte // from the IP header on
	frame   []byte
	got     result
	counted map[string]uint64
}

// arrives runs a packet through the ingress program.
func (c *play) arrives(p pkt) *step { c.Helper(); return c.raw(ingress, p.bytes()) }

// leaves runs a packet through the egress program.
func (c *play) leaves(p pkt) *step { c.Helper(); return c.raw(egress, p.bytes()) }

func (c *play) raw(h hook, packet []byte) *step {
	c.Helper()
	return c.frame(h, c.rig.frame(h, packet))
}

// trims marks a case in which packets become shorter. The kernel then drops the device's
// checksum, but BPF_PROG_TEST_RUN compares it all the same.
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

// becomes checks that the packet was passed on, changed to want.
func (s *step) becomes(want pkt, reason string) {
	s.c.Helper()
	s.ends(unspec, reason)
	s.is(want.bytes())
}

// passes checks that the packet was passed on unchanged.
func (s *step) passes(reason string) {
	s.c.Helper()
	s.ends(unspec, reason)
	s.is(s.in)
}

// dropped checks that the packet was dropped.
func (s *step) dropped(reason string) {
	s.c.Helper()
	s.ends(shot, reason)
}

// answered checks that want is sent back on the device, to the host that the packet came
// from.
func (s *step) answered(want pkt, reason string) {
	s.c.Helper()
	s.ends(redirect, reason)
	if s.c.rig.device.NoEthernet && want.proto != protoTCP {
		return // BPF_PROG_TEST_RUN assumes an Ethernet header and makes room behind it
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
	if want := map[string]uint64{reason: 1}; !stdmaps.Equal(s.counted, want) {
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

// describe returns the packet's parsed fields as text.
func describe(b []byte) string {
	v, kind := readPacket(b, 0)
	name := map[uint8]string{protoTCP: "TCP", protoUDP: "UDP", protoICMP: "ICMP", protoICMP6: "ICMPv6"}[v.proto]
	if name == "" {
		name = fmt.Sprintf("protocol %d", v.proto)
	}
	text := fmt.Sprintf("%s %s → %s", name, v.src, v.dst)
	if kind == isFragment {
		text += fmt.Sprintf(" (a fragment of %#x)", v.id)
	}
	if v.proto == protoTCP && kind == isTransport {
		text += fmt.Sprintf(" flags %#x", v.flags)
	}
	return fmt.Sprintf("%s (%d bytes)", text, len(b))
}

// opens returns the first packet of a connection or flow. continues returns a later one.
func (c *play) opens(src, dst netip.AddrPort) pkt {
	if c.proto == protoTCP {
		return tcp(src, dst, syn).with(func(p *pkt) { p.options = []byte{2, 4, 5, 0xb4} })
	}
	return udp(src, dst, "question")
}

// accepts returns a backend's first answer.
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

// source returns the SNAT address and the only SNAT port.
func (c *play) source() netip.AddrPort { return netip.AddrPortFrom(c.wire, firstPort) }

// firstPort is the first SNAT port, and in most cases the only one.
const firstPort = 61000

// at returns an address with another port.
func at(a netip.AddrPort, port uint16) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), port) }
