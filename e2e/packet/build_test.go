// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Protocol numbers.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoESP      = 50
	protoAuth     = 51
	protoICMP6    = 58
	protoNone     = 59
	protoDest     = 60
	protoSCTP     = 132
)

// TCP flags.
const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
	urg
)

// ext is an IPv6 extension header. body excludes its first two bytes. The whole is a
// multiple of 8 bytes (4 for the authentication header).
type ext struct {
	kind uint8
	body []byte
}

// pkt describes one packet. bytes builds it, with correct checksums. The zero values of
// fields make an ordinary packet.
type pkt struct {
	src, dst netip.AddrPort
	proto    uint8

	// TCP.
	flags    uint8
	seq, ack uint32
	window   uint16
	options  []byte // a multiple of 4
	// UDP over IPv4 without a checksum.
	noSum bool
	// ICMP: the ports are not used, word is the second one of the header.
	icmpType, icmpCode uint8
	word               uint32

	payload []byte

	ttl, tos  uint8 // ttl 0 means 64
	id        uint32
	df        bool
	ipOptions []byte // IPv4, a multiple of 4
	exts      []ext  // IPv6

	// A fragment: the bytes from `from` to `to` of what follows the IP header.
	fragment bool
	from, to int
	more     bool
}

// Sequence and acknowledgement numbers of TCP packets, the same for both sides. A packet has
// sequence number firstSeq and acknowledges lastAck. A RST has sequence number lastAck, and a
// SYN or SYN-ACK has lastAck-1.
const firstSeq, lastAck = 1000, 77

func tcp(src, dst netip.AddrPort, flags uint8) pkt {
	p := pkt{src: src, dst: dst, proto: protoTCP, flags: flags, seq: firstSeq, window: 64240}
	if flags&ack != 0 {
		p.ack = lastAck
	}
	if flags&rst != 0 {
		p.seq = lastAck
	}
	if isSYN(flags) {
		p.seq = lastAck - 1
	}
	return p
}

func udp(src, dst netip.AddrPort, payload string) pkt {
	return pkt{src: src, dst: dst, proto: protoUDP, payload: []byte(payload)}
}

// icmpError is an ICMP error between two addresses about the packet inner, whose bytes are
// as on the wire.
func icmpError(src, dst netip.Addr, kind, code uint8, word uint32, inner []byte) pkt {
	p := pkt{src: netip.AddrPortFrom(src, 0), dst: netip.AddrPortFrom(dst, 0), proto: protoICMP,
		icmpType: kind, icmpCode: code, word: word, payload: inner}
	if src.Is6() {
		p.proto = protoICMP6
	}
	return p
}

// as returns the packet with another source and destination. An invalid address keeps the
// packet's own.
func (p pkt) as(src, dst netip.AddrPort) pkt {
	if src.IsValid() {
		p.src = src
	}
	if dst.IsValid() {
		p.dst = dst
	}
	return p
}

// with returns a changed copy.
func (p pkt) with(change func(*pkt)) pkt {
	p.options, p.payload = slices.Clone(p.options), slices.Clone(p.payload)
	p.ipOptions, p.exts = slices.Clone(p.ipOptions), slices.Clone(p.exts)
	change(&p)
	return p
}

// fragments splits what follows the IP header at these offsets (multiples of 8).
func (p pkt) fragments(id uint32, at ...int) []pkt {
	body := len(p.body())
	var all []pkt
	from := 0
	for _, to := range append(at, body) {
		all = append(all, p.with(func(f *pkt) {
			f.fragment, f.from, f.to, f.more, f.id = true, from, to, to < body, id
		}))
		from = to
	}
	return all
}

// body returns what follows the IP header and its extensions.
func (p pkt) body() []byte {
	var b []byte
	sport, dport := p.src.Port(), p.dst.Port()
	switch p.proto {
	case protoTCP:
		b = make([]byte, 20, 20+len(p.options)+len(p.payload))
		binary.BigEndian.PutUint16(b[0:], sport)
		binary.BigEndian.PutUint16(b[2:], dport)
		binary.BigEndian.PutUint32(b[4:], p.seq)
		binary.BigEndian.PutUint32(b[8:], p.ack)
		b[12] = uint8(5+len(p.options)/4) << 4
		b[13] = p.flags
		binary.BigEndian.PutUint16(b[14:], p.window)
		b = append(append(b, p.options...), p.payload...)
		binary.BigEndian.PutUint16(b[16:], p.l4sum(b))
	case protoUDP:
		b = make([]byte, 8, 8+len(p.payload))
		binary.BigEndian.PutUint16(b[0:], sport)
		binary.BigEndian.PutUint16(b[2:], dport)
		b = append(b, p.payload...)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
		if !p.noSum {
			s := p.l4sum(b)
			if s == 0 {
				s = 0xffff
			}
			binary.BigEndian.PutUint16(b[6:], s)
		}
	case protoICMP, protoICMP6:
		b = make([]byte, 8, 8+len(p.payload))
		b[0], b[1] = p.icmpType, p.icmpCode
		binary.BigEndian.PutUint32(b[4:], p.word)
		b = append(b, p.payload...)
		s := ^fold(sum16(b))
		if p.proto == protoICMP6 {
			s = p.l4sum(b)
		}
		binary.BigEndian.PutUint16(b[2:], s)
	default:
		b = slices.Clone(p.payload)
	}
	return b
}

// l4sum returns the checksum of the pseudo header and b.
func (p pkt) l4sum(b []byte) uint16 {
	s := sum16(p.src.Addr().AsSlice()) + sum16(p.dst.Addr().AsSlice())
	return ^fold(s + uint32(len(b)) + uint32(p.proto) + sum16(b))
}

// bytes returns the packet from its IP header on.
func (p pkt) bytes() []byte {
	body := p.body()
	if p.fragment {
		body = body[p.from:p.to]
	}
	if p.src.Addr().Is4() {
		return append(p.header4(len(body)), body...)
	}
	return append(p.header6(len(body)), body...)
}

func (p pkt) hops() uint8 {
	if p.ttl == 0 {
		return 64
	}
	return p.ttl
}

func (p pkt) header4(body int) []byte {
	h := make([]byte, 20, 20+len(p.ipOptions)+body)
	h[0] = 0x40 | uint8(5+len(p.ipOptions)/4)
	h[1] = p.tos
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(p.ipOptions)+body))
	binary.BigEndian.PutUint16(h[4:], uint16(p.id))
	frag := uint16(p.from / 8)
	if p.more {
		frag |= 0x2000
	}
	if p.df {
		frag |= 0x4000
	}
	binary.BigEndian.PutUint16(h[6:], frag)
	h[8], h[9] = p.hops(), p.proto
	copy(h[12:], p.src.Addr().AsSlice())
	copy(h[16:], p.dst.Addr().AsSlice())
	h = append(h, p.ipOptions...)
	binary.BigEndian.PutUint16(h[10:], ^fold(sum16(h)))
	return h
}

func (p pkt) header6(body int) []byte {
	exts := slices.Clone(p.exts)
	if p.fragment {
		f := make([]byte, 6)
		off := uint16(p.from)
		if p.more {
			off |= 1
		}
		binary.BigEndian.PutUint16(f[0:], off)
		binary.BigEndian.PutUint32(f[2:], p.id)
		exts = append(exts, ext{protoFragment, f})
	}
	var chain []byte
	for i, e := range exts {
		next := p.proto
		if i+1 < len(exts) {
			next = exts[i+1].kind
		}
		length := uint8(0)
		switch e.kind {
		case protoFragment:
		case protoAuth:
			length = uint8((len(e.body)+2)/4 - 2)
		default:
			length = uint8((len(e.body)+2)/8 - 1)
		}
		chain = append(append(chain, next, length), e.body...)
	}
	h := make([]byte, 40, 40+len(chain)+body)
	binary.BigEndian.PutUint32(h[0:], 0x60000000|uint32(p.tos)<<20)
	binary.BigEndian.PutUint16(h[4:], uint16(len(chain)+body))
	h[6] = p.proto
	if len(exts) > 0 {
		h[6] = exts[0].kind
	}
	h[7] = p.hops()
	copy(h[8:], p.src.Addr().AsSlice())
	copy(h[24:], p.dst.Addr().AsSlice())
	return append(h, chain...)
}

// sum16 adds up big-endian 16-bit words. A zero byte is appended to an odd length.
func sum16(b []byte) uint32 {
	var s uint32
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) > 0 {
		s += uint32(b[0]) << 8
	}
	return s
}

// fold reduces a sum to 16 bits by adding the carries.
func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
