// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// sums updates the checksum at an offset after the bytes it covers changed from old to is
// (RFC 1624, equation 3).
func (m *model) sums(at int, old, is []byte) {
	s := uint32(^binary.BigEndian.Uint16(m.b[at:]))
	for i := 0; i < len(old); i += 2 {
		s += uint32(^binary.BigEndian.Uint16(old[i:])) + uint32(binary.BigEndian.Uint16(is[i:]))
	}
	binary.BigEndian.PutUint16(m.b[at:], ^fold(s))
}

// transportSums is sums for the transport checksum of a packet with ports, if it has one.
func (m *model) transportSums(v view, old, is []byte) {
	at := v.l4 + 16
	if v.proto == protoUDP {
		if at = v.l4 + 6; m.b[at] == 0 && m.b[at+1] == 0 {
			return
		}
	}
	m.sums(at, old, is)
	if v.proto == protoUDP && m.b[at] == 0 && m.b[at+1] == 0 {
		m.b[at], m.b[at+1] = 0xff, 0xff
	}
}

// address returns the offset of an address in the IP header, and its bytes.
func (v view) address(source bool) (at int, old []byte) {
	e, at4, at6 := v.dst, 16, 24
	if source {
		e, at4, at6 = v.src, 12, 8
	}
	if v.v4 {
		return v.l3 + at4, e.addr[12:]
	}
	return v.l3 + at6, e.addr[:]
}

func (v view) written(addr [16]byte) []byte {
	if v.v4 {
		return addr[12:]
	}
	return addr[:]
}

// rewrite changes the packet's source or destination address and its ports. Only the first
// fragment of a datagram has ports.
func (m *model) rewrite(v view, isFragment, source bool, addr [16]byte, sport, dport uint16) {
	at, old := v.address(source)
	is := v.written(addr)
	if !bytes.Equal(old, is) {
		if v.v4 {
			m.sums(v.l3+10, old, is)
		}
		if !isFragment {
			m.transportSums(v, old, is)
		}
		copy(m.b[at:], is)
	}
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
	if isFragment || bytes.Equal(ports, m.b[v.l4:v.l4+4]) {
		return
	}
	m.transportSums(v, slices.Clone(m.b[v.l4:v.l4+4]), ports)
	copy(m.b[v.l4:], ports)
}

// pseudo returns the sum of the pseudo header between the packet's hosts.
func (v view) pseudo(proto uint8, size int) uint32 {
	return sum16(v.written(v.src.addr)) + sum16(v.written(v.dst.addr)) + uint32(proto) + uint32(size)
}

// size returns the length of what follows the IP header and its extensions, from the
// header's fields. It returns 0 for impossible values.
func (m *model) size(v view) int {
	all := int(binary.BigEndian.Uint16(m.b[v.l3+2:]))
	if !v.v4 {
		all = 40 + int(binary.BigEndian.Uint16(m.b[v.l3+4:]))
	}
	return max(0, all-(v.l4-v.l3))
}

func (m *model) swapEthernet() {
	dst, src := [6]byte(m.b[0:6]), [6]byte(m.b[6:12])
	copy(m.b[0:], src[:])
	copy(m.b[6:], dst[:])
}

// answerHop is the TTL of answers.
const answerHop = 64

// reset turns the packet into a RST that answers it (RFC 9293, 3.10.7.1). It returns false
// if that is impossible.
func (m *model) reset(v view) bool {
	got := slices.Clone(m.b[v.l4 : v.l4+20])
	header, size := int(got[12]>>4)*4, m.size(v)
	if v.first || header < 20 || size < header {
		return false
	}
	t := make([]byte, 20)
	copy(t[0:2], got[2:4])
	copy(t[2:4], got[0:2])
	next := binary.BigEndian.Uint32(got[4:]) + uint32(size-header)
	if got[13]&syn != 0 {
		next++
	}
	if got[13]&fin != 0 {
		next++
	}
	binary.BigEndian.PutUint32(t[8:], next)
	t[12], t[13] = 5<<4, rst|ack
	if got[13]&ack != 0 {
		copy(t[4:8], got[8:12])
		copy(t[8:12], make([]byte, 4))
		t[13] = rst
	}
	binary.BigEndian.PutUint16(t[16:], ^fold(v.pseudo(protoTCP, 20)+sum16(t)))
	m.b = append(m.b[:v.l4:v.l4], t...)
	m.turnIP(v)
	m.swapEthernet()
	return true
}

// turnIP makes the packet's IP header that of an answer, which is the whole rest of the
// frame.
func (m *model) turnIP(v view) {
	h := m.b[v.l3:]
	src, dst := v.written(v.src.addr), v.written(v.dst.addr)
	if !v.v4 {
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)-40))
		h[7] = answerHop
		copy(h[8:], dst)
		copy(h[24:], src)
		return
	}
	old := slices.Clone(h[:20])
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)))
	binary.BigEndian.PutUint16(h[6:], 0x4000)
	h[8] = answerHop
	copy(h[12:], dst)
	copy(h[16:], src)
	m.sums(v.l3+10, old, slices.Clone(h[:20]))
}

// quoteMost is how many bytes shunt's ICMP errors can quote.
const quoteMost = 256

// unreachable turns the packet into an ICMP error for its sender that quotes its beginning.
// It returns false if the quote is too long.
func (m *model) unreachable(v view) bool {
	quote := slices.Clone(m.b[v.l3 : v.l4+8])
	if len(quote) > quoteMost {
		return false
	}
	src, dst := end{v.dst.addr, 0}, end{v.src.addr, 0}
	kind, code := uint8(3), uint8(3)
	if !v.v4 {
		kind, code = 1, 4
	}
	e := icmpError(src.ip(), dst.ip(), kind, code, 0, quote)
	e.df = true
	m.b = append(m.b[:v.l3:v.l3], e.bytes()...)
	m.swapEthernet()
	return true
}
