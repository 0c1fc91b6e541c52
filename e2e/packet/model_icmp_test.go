// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"slices"

	"shunt/maps"
)

// quoted returns the packet that an ICMP error is about, if it has ports.
func (m *model) quoted(v view) (view, bool) {
	if len(m.b) <= v.l4 {
		return view{}, false
	}
	var q view
	var kind packetKind
	switch t := m.b[v.l4]; {
	case v.v4 && (t == 3 || t == 4 || t == 11 || t == 12):
		q, kind = read4(m.b, v.l4+8, true)
	case !v.v4 && t >= 1 && t <= 4:
		q, kind = read6(m.b, v.l4+8, true)
	}
	return q, kind == isTransport
}

// icmpIn handles an arriving error, about a packet as it left this node.
func (m *model) icmpIn(v view) (uint32, string) {
	q, ok := m.quoted(v)
	if !ok {
		return unspec, "icmp_passed"
	}
	f, ok := m.find(flowKey{maps.FlowKeyIn, q.proto, q.dst, q.src})
	if !ok || f.flags&maps.FlowLocal != 0 || f.expired(m.now) {
		return unspec, "icmp_passed"
	}
	if f.frontend == q.src { // about a reply of the frontend, originally the backend's
		m.rewriteError(v, q, false, f.backend.addr, true, f.backend, f.inside())
	} else { // about the client's packet, from the SNAT address
		m.rewriteError(v, q, false, f.client.addr, true, f.inside(), f.backend)
	}
	return unspec, "icmp_translated"
}

// icmpOut handles a leaving error, about a packet that the node's stack has seen.
func (m *model) icmpOut(v view) (uint32, string) {
	q, ok := m.quoted(v)
	if !ok {
		return unspec, "icmp_passed"
	}
	f, ok := m.find(ends(q.proto, q.src, q.dst))
	ok = ok && !f.expired(m.now)
	switch {
	case ok && q.dst == f.backend: // to the client: its packet was to the frontend
		outer := v.src.addr
		if outer == f.backend.addr {
			outer = f.frontend.addr
		}
		m.rewriteError(v, q, true, outer, false, end{q.src.addr, f.client.port}, f.frontend)
	case ok && f.node.port != 0: // to the backend: its packet was to the SNAT address
		m.rewriteError(v, q, true, v.src.addr, false, f.backend, f.node)
	default:
		return unspec, "icmp_passed"
	}
	return unspec, "icmp_translated"
}

// rewriteError changes the source or destination of an ICMP error, and one end and the
// ports of the packet that it quotes.
func (m *model) rewriteError(v, q view, outerSource bool, outer [16]byte, innerSource bool, src, dst end) {
	inner := dst.addr
	if innerSource {
		inner = src.addr
	}
	before := slices.Clone(m.b[v.l4:])
	at, oldAddr := q.address(innerSource)
	isAddr := q.written(inner)
	if q.v4 {
		m.sums(q.l3+10, oldAddr, isAddr)
	}
	copy(m.b[at:], isAddr)
	oldPorts := slices.Clone(m.b[q.l4 : q.l4+4])
	binary.BigEndian.PutUint16(m.b[q.l4:], src.port)
	binary.BigEndian.PutUint16(m.b[q.l4+2:], dst.port)
	check := q.l4 + 16
	if q.proto == protoUDP {
		check = q.l4 + 6
	}
	if check+2 <= len(m.b) { // hosts may quote less
		m.transportSums(q, append(slices.Clone(oldAddr), oldPorts...), append(slices.Clone(isAddr), m.b[q.l4:q.l4+4]...))
	}
	m.errorSums(v, before, outerSource, outer)
}

// errorSums writes the outer address, and updates the error's own checksums: that of its IP
// header, and that of ICMP, which for ICMPv6 covers the addresses.
func (m *model) errorSums(v view, before []byte, source bool, addr [16]byte) {
	at, old := v.address(source)
	is := v.written(addr)
	after := slices.Clone(m.b[v.l4:])
	if len(before)%2 != 0 {
		before, after = append(before, 0), append(after, 0)
	}
	if v.v4 {
		m.sums(v.l3+10, old, is)
	} else {
		before, after = append(before, old...), append(after, is...)
	}
	copy(m.b[at:], is)
	m.sums(v.l4+2, before, after)
}
