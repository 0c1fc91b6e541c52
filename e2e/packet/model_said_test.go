// SPDX-License-Identifier: Apache-2.0

package packet

import "shunt/maps"

// point records a side's sequence numbers in the entry of that key, if the packet's numbers can
// belong to the connection.
func (m *model) point(f flow, k flowKey, v view, isFragment, fromClient bool) {
	if v.proto != protoTCP || isFragment || v.flags&rst != 0 {
		return
	}
	there, _ := m.entry(k)
	last := there.backendAt
	if fromClient {
		last = there.clientAt
	}
	if near(v.at.seq, last.seq, segment) && near(v.at.ack, last.ack, segment) || m.isWithin(f, v, fromClient) {
		m.setPoint(k, v, fromClient)
	}
}

// near reports whether two numbers differ by at most most.
func near(a, b uint32, most int32) bool { d := int32(a - b); return d >= -most && d <= most }

// isWithin reports whether a packet's numbers are in the windows that the other side has shown.
func (m *model) isWithin(f flow, v view, fromClient bool) bool {
	switch other := m.otherAt(f, fromClient); {
	case f.flags&maps.FlowConfirmed == 0:
		return true
	case isSYN(v.flags):
		return false
	case !fromClient && v.flags&(syn|ack|rst) == syn|ack && f.clientSaid&(maps.SaidSYN|maps.SaidAsked) != 0:
		return true // it begins a new connection
	default:
		acked := int32(v.at.ack - other.seq)
		return other == (point{}) || v.flags&ack != 0 && near(v.at.seq, other.ack, window) && acked >= -window && acked <= segment
	}
}

// setPoint writes a side's numbers to the entry of that key.
func (m *model) setPoint(k flowKey, v view, fromClient bool) {
	for _, all := range []map[flowKey]flow{m.confirmed, m.fresh} {
		there, ok := all[k]
		switch {
		case !ok:
			continue
		case fromClient:
			there.clientAt = v.at
		default:
			there.backendAt = v.at
		}
		all[k] = there
		return
	}
}

// Bounds of credible numbers (track.h).
const (
	window  = 1 << 24
	segment = 1 << 19
	// windowBehind is firstSeq minus window.
	windowBehind = 1<<32 + firstSeq - window
)

// otherAt returns the other side's numbers in its last packet, the zero value if they are
// not known.
func (m *model) otherAt(f flow, fromClient bool) point {
	remapped := f.flags&maps.FlowRemapped != 0
	k := f.outKey()
	switch {
	case fromClient && remapped:
		k = f.wireKey()
	case !fromClient && !remapped:
		k = f.clientKey()
	}
	there, ok := m.entry(k)
	switch {
	case !ok || !there.sameEnds(f):
		return point{}
	case fromClient:
		return there.backendAt
	}
	return there.clientAt
}

// acknowledges reports whether an arriving packet of a client acknowledges the backend's last
// bytes, to within segment. It has no case for a remapped flow: the client of that flow is on
// this node, so none of its packets arrives.
func (m *model) acknowledges(f flow, v view) bool {
	if v.proto != protoTCP {
		return true
	}
	there, ok := m.entry(f.outKey())
	if !ok || !there.sameEnds(f) || there.backendAt == (point{}) {
		return false
	}
	acked := int64(int32(v.at.ack - there.backendAt.seq))
	return v.flags&ack != 0 && acked >= -segment && acked <= segment
}

// asksAgain records the sequence number of a client's SYN to a backend that has not
// answered.
func (m *model) asksAgain(f flow, v view) {
	if v.proto != protoTCP || !isSYN(v.flags) || f.backendSaid&maps.SaidAnything != 0 || f.flags&maps.FlowConfirmed != 0 {
		return
	}
	if there, ok := m.entry(f.outKey()); ok && there.sameEnds(f) {
		m.setPoint(f.outKey(), v, true)
	}
}

// believes reports whether a FIN or RST of an established connection fits the other side's
// last numbers.
func (m *model) believes(f flow, v view, fromClient bool) bool {
	if f.flags&maps.FlowConfirmed == 0 {
		return true
	}
	if !fromClient && f.clientSaid&maps.SaidAsked != 0 && v.at.seq == 0 && v.flags&(rst|ack) == rst|ack {
		return true // it answers a SYN
	}
	other := m.otherAt(f, fromClient)
	if other == (point{}) {
		return false
	}
	ahead, acked := v.at.seq-other.ack, int32(v.at.ack-other.seq)
	switch {
	case v.flags&rst != 0 && ahead == 0:
		return true
	case v.flags&ack == 0 || ahead >= window || acked > segment:
		return false
	case v.flags&rst != 0:
		return acked >= 0
	}
	return acked >= -window
}

// end returns which of FIN and RST a packet adds to its side, if they are new and believed.
func (m *model) end(f flow, v view, fromClient bool) (end uint8) {
	said, other := f.backendSaid, f.clientSaid
	if fromClient {
		said, other = other, said
	}
	if v.flags&fin != 0 && said&maps.SaidFIN == 0 {
		end = maps.SaidFIN
		if other&maps.SaidFIN != 0 {
			end |= maps.SaidFINLater
		}
	}
	if v.flags&rst != 0 && said&maps.SaidRST == 0 {
		end |= maps.SaidRST
	}
	if end != 0 && !m.believes(f, v, fromClient) {
		return 0
	}
	return end
}

// hear returns the two sides' flags after a packet.
func (m *model) hear(f flow, v view, fromClient bool) (client, backend uint8) {
	client, backend = f.clientSaid, f.backendSaid
	switch {
	case fromClient && !isSYN(v.flags):
		client &^= maps.SaidSYN | maps.SaidAsked | maps.SaidAskedAgain
		client |= m.end(f, v, true)
	case fromClient:
		if f.flags&maps.FlowConfirmed != 0 {
			if client&maps.SaidAsked != 0 && m.now >= f.used+touchEvery/10*9 {
				client |= maps.SaidAskedAgain
			}
			client |= maps.SaidAsked
		}
		if (f.clientSaid|backend)&maps.SaidFIN != 0 {
			client |= maps.SaidSYN
		}
		client |= m.end(f, v, true)
	case v.flags&(syn|ack|rst) == syn|ack && client&maps.SaidSYN != 0:
		client, backend = maps.SaidSYN, maps.SaidAnything
	default:
		if v.flags&rst == 0 {
			client &^= maps.SaidAsked | maps.SaidAskedAgain
		}
		backend |= maps.SaidAnything | m.end(f, v, false)
	}
	return client, backend
}

// touch records a packet in all entries of its flow, and recreates missing ones.
func (m *model) touch(f *flow, v view, fromClient bool) {
	client, backend := m.hear(*f, v, fromClient)
	if client == f.clientSaid && backend == f.backendSaid {
		if m.now < f.used+touchEvery {
			return
		}
		// A RST did not end the connection if its sender still sends after touchEvery.
		if v.flags&rst == 0 {
			if fromClient {
				client &^= maps.SaidRST
			} else {
				backend &^= maps.SaidRST
			}
		}
	}
	was := *f
	f.clientSaid, f.backendSaid, f.used = client, backend, m.now
	keys := []flowKey{f.outKey(), f.clientKey()}
	if f.node.port != 0 {
		keys = append(keys, f.wireKey())
	}
	for _, k := range keys {
		m.refresh(k, was, *f)
	}
}

// refresh changes in an entry what has changed in the flow, or recreates the entry.
func (m *model) refresh(k flowKey, was, f flow) {
	changed := func(there *uint8, was, is uint8) { *there = *there&^(was&^is) | is&^was }
	for _, all := range []map[flowKey]flow{m.confirmed, m.fresh} {
		there, ok := all[k]
		if !ok {
			continue
		}
		if there.same(f) {
			there.used = f.used
			changed(&there.clientSaid, was.clientSaid, f.clientSaid)
			changed(&there.backendSaid, was.backendSaid, f.backendSaid)
			all[k] = there
		}
		return
	}
	m.put(k, f)
}
