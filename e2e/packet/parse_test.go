// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// end is an address and a port. IPv4 addresses are v4-mapped, as in the maps.
type end struct {
	addr [16]byte
	port uint16
}

func newEnd(a netip.AddrPort) end { return end{a.Addr().As16(), a.Port()} }

func (e end) ip() netip.Addr { return netip.AddrFrom16(e.addr).Unmap() }

func (e end) String() string { return netip.AddrPortFrom(e.ip(), e.port).String() }

// compare orders ends as the keys of flows do.
func (e end) compare(o end) int {
	return cmp.Or(bytes.Compare(e.addr[:], o.addr[:]), cmp.Compare(e.port, o.port))
}

// view holds the parsed fields of a packet.
type view struct {
	src, dst end
	l3, l4   int // offsets
	id       uint32
	datagram uint8 // of a fragment: the protocol in its fragment header
	proto    uint8
	v4       bool
	first    bool // a fragment, and the first
	flags    uint8
	at       point // of TCP
}

type packetKind uint8

const (
	isOther packetKind = iota
	isMalformed
	isTransport
	isFragment
	isICMP
)

func (k packetKind) String() string {
	return [...]string{"other", "malformed", "transport", "fragment", "icmp"}[k]
}

// readPacket reads the packet at an offset of b, by its version.
func readPacket(b []byte, at int) (view, packetKind) {
	if len(b) > at && b[at]>>4 == 6 {
		return read6(b, at, false)
	}
	return read4(b, at, false)
}

// mapped reports whether an address of an IPv6 header is v4-mapped: no host sends such
// packets, and they must find no flow.
func mapped(a [16]byte) bool { return netip.AddrFrom16(a).Is4In6() }

func read4(b []byte, at int, quoted bool) (view, packetKind) {
	v := view{l3: at, v4: true}
	if len(b) < at+20 || b[at]>>4 != 4 || b[at]&15 < 5 {
		return v, isMalformed
	}
	h := b[at:]
	v.src.addr = netip.AddrFrom4([4]byte(h[12:16])).As16()
	v.dst.addr = netip.AddrFrom4([4]byte(h[16:20])).As16()
	v.proto, v.l4 = h[9], at+int(h[0]&15)*4
	v.id, v.datagram = uint32(h[4])<<8|uint32(h[5]), h[9]
	frag := binary.BigEndian.Uint16(h[6:])
	if frag&0x1fff != 0 {
		return v, isFragment
	}
	v.first = frag&0x2000 != 0
	return readPorts(b, v, quoted)
}

// maxExtensions is how many extension headers are skipped. Packets with more are not
// handled.
const maxExtensions = 8

func read6(b []byte, at int, quoted bool) (view, packetKind) {
	v := view{l3: at, l4: at + 40}
	if len(b) < at+40 || b[at]>>4 != 6 {
		return v, isMalformed
	}
	h := b[at:]
	copy(v.src.addr[:], h[8:24])
	copy(v.dst.addr[:], h[24:40])
	if mapped(v.src.addr) || mapped(v.dst.addr) {
		return v, isMalformed
	}
	v.proto = h[6]
	for range maxExtensions + 1 {
		need := 2
		switch v.proto {
		case protoFragment:
			need = 8
		case protoHopByHop, protoRouting, protoDest:
		default:
			return readPorts(b, v, quoted)
		}
		if len(b) < v.l4+need {
			return v, isMalformed
		}
		h := b[v.l4:]
		kind := v.proto
		v.proto = h[0]
		if kind != protoFragment {
			v.l4 += (int(h[1]) + 1) * 8
			continue
		}
		v.l4 += 8
		v.datagram, v.id = h[0], binary.BigEndian.Uint32(h[4:])
		off := binary.BigEndian.Uint16(h[2:])
		if off&0xfff8 != 0 {
			return v, isFragment
		}
		v.first = off&1 != 0
	}
	return v, isOther
}

func readPorts(b []byte, v view, quoted bool) (view, packetKind) {
	switch v.proto {
	case protoTCP, protoUDP:
		need := 8
		if v.proto == protoTCP && !quoted {
			need = 20
		}
		if len(b) < v.l4+need {
			return v, isMalformed
		}
		h := b[v.l4:]
		v.src.port, v.dst.port = binary.BigEndian.Uint16(h), binary.BigEndian.Uint16(h[2:])
		if v.proto == protoTCP && !quoted {
			v.flags = h[13]
			v.at = point{binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])}
		}
		return v, isTransport
	case protoICMP, protoICMP6:
		if (v.proto == protoICMP) == v.v4 && !v.first {
			return v, isICMP
		}
	}
	return v, isOther
}

func (v view) String() string { return fmt.Sprintf("%s → %s", v.src, v.dst) }
