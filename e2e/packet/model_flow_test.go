// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"slices"
	"time"

	"shunt/maps"
)

// Bounds of the programs (flow.h, snat.h).
const (
	touchEvery = int64(time.Second)
	innerTries = 16
	snatTries  = 64
	patience   = 4 // from this try on, a reusable port is taken
)

func (f flow) clientKey() flowKey { return flowKey{maps.FlowKeyIn, f.proto, f.client, f.frontend} }
func (f flow) wireKey() flowKey   { return flowKey{maps.FlowKeyIn, f.proto, f.backend, f.node} }
func (f flow) outKey() flowKey    { return ends(f.proto, f.inside(), f.backend) }

// inside returns the client's address and port as the backend's side of the node's stack
// sees them.
func (f flow) inside() end { return end{f.client.addr, f.inner} }

// ends returns the key of packets in the node's stack, the same in both directions.
func ends(proto uint8, a, b end) flowKey {
	if b.compare(a) < 0 {
		a, b = b, a
	}
	return flowKey{maps.FlowKeyOut, proto, a, b}
}

func (f flow) sameClient(o flow) bool { return f.client == o.client && f.frontend == o.frontend }
func (f flow) sameEnds(o flow) bool {
	return f.sameClient(o) && f.inner == o.inner && f.backend == o.backend
}
func (f flow) same(o flow) bool { return f.sameEnds(o) && f.node.port == o.node.port }

func (f flow) reset() bool { return (f.clientSaid|f.backendSaid)&maps.SaidRST != 0 }

func (f flow) closed() bool { return f.reset() || f.clientSaid&f.backendSaid&maps.SaidFIN != 0 }

func (f flow) expired(now int64) bool {
	var after time.Duration
	answered := f.flags&maps.FlowConfirmed != 0
	switch {
	case f.proto == protoUDP && answered:
		after = timeouts.UDPEstablished
	case f.proto == protoUDP:
		after = timeouts.UDPNew
	case f.closed():
		after = timeouts.TCPClosed
	case (f.clientSaid|f.backendSaid)&maps.SaidFIN != 0:
		after = timeouts.TCPCloseWait
	case f.clientSaid&maps.SaidSYN != 0:
		after = timeouts.TCPNew
	case answered:
		after = timeouts.TCPEstablished
	default:
		after = timeouts.TCPNew
	}
	return f.used+int64(after) <= now
}

// serves reports whether the flow's backend still exists, in the sets or not.
func (m *model) serves(f flow) bool {
	b, ok := m.world.backends[f.id]
	return ok && b.service == f.service && newEnd(b.addr) == f.backend
}

func isSYN(flags uint8) bool { return flags&(syn|ack|rst) == syn }

// goesOn reports whether a client's packet belongs to this flow. Otherwise it begins a new
// one.
func (m *model) goesOn(f flow, v view) bool {
	if f.expired(m.now) {
		return false
	}
	if v.proto == protoTCP && !isSYN(v.flags) {
		return true
	}
	if v.proto == protoTCP && f.closed() {
		return false
	}
	if f.flags&maps.FlowDirect != 0 || m.serves(f) && m.leads(f) || m.stays(f) {
		return true
	}
	// A SYN may be forged: it goes to the flow's backend first.
	established := v.proto == protoTCP && f.flags&maps.FlowConfirmed != 0 && f.clientSaid&maps.SaidFIN == 0
	unanswered := f.clientSaid&maps.SaidAskedAgain != 0 && m.now >= f.used+touchEvery/10*9
	return established && !unanswered
}

// stays reports whether the service that has the flow's frontend sends new flows to the flow's
// backend.
func (m *model) stays(f flow) bool {
	there, found, _ := m.frontend(f.frontend, f.proto)
	if !found || there.flags&maps.SourceRanges != 0 && !slices.ContainsFunc(m.world.sources[there.service],
		func(p netip.Prefix) bool { return p.Contains(f.client.ip()) }) {
		return false
	}
	return slices.ContainsFunc(slices.Concat(there.inside, there.outside), func(id uint32) bool {
		b, used := m.world.backends[id]
		return used && b.service == there.service && newEnd(b.addr) == f.backend
	})
}

// leads reports whether the flow's frontend still belongs to its service.
func (m *model) leads(f flow) bool {
	there, found, _ := m.frontend(f.frontend, f.proto)
	return found && there.service == f.service
}

// find returns a copy of an entry without the sides' sequence numbers.
func (m *model) find(k flowKey) (flow, bool) {
	f, ok := m.entry(k)
	f.clientAt, f.backendAt = point{}, point{}
	return f, ok
}

func (m *model) entry(k flowKey) (flow, bool) {
	f, ok := m.confirmed[k]
	if !ok {
		f, ok = m.fresh[k]
	}
	return f, ok
}

// put inserts an entry into the map of its flow, if there is room.
func (m *model) put(k flowKey, f flow) bool {
	if f.flags&maps.FlowConfirmed == 0 {
		m.fresh[k] = f
		return true
	}
	return m.confirm(k, f)
}

func (m *model) confirm(k flowKey, f flow) bool {
	if _, there := m.confirmed[k]; !there && len(m.confirmed) >= m.room {
		return false
	}
	m.confirmed[k] = f
	return true
}

func (m *model) remove(k flowKey) {
	delete(m.confirmed, k)
	delete(m.fresh, k)
}

// begin records a new flow, and chooses the client's port that the backend sees: the client's
// own port, or another one if a flow to that backend already uses it. It returns false if all
// ports that it tries are in use.
func (m *model) begin(f *flow, v view) bool {
	hash, claimed := pick(v.src, v.dst, v.proto), false
	if v.proto == protoTCP {
		f.clientAt = v.at // in the entries only
		defer func() { f.clientAt = point{} }()
	}
	for i := uint32(0); i < innerTries && !claimed; i++ {
		f.inner = f.client.port
		if i > 0 {
			f.inner = m.snatPort(hash, i)
		}
		if f.inside() == f.backend {
			continue
		}
		old, there := m.find(f.outKey())
		ours := there && old.sameClient(*f)
		if there && !ours && !old.closed() && !old.expired(m.now) {
			continue
		}
		if ours && old.node.port != 0 {
			if wire, ok := m.find(old.wireKey()); ok && wire.same(old) {
				m.remove(old.wireKey())
			}
		}
		delete(m.confirmed, f.outKey())
		m.fresh[f.outKey()] = *f
		if claimed = i == 0 && f.flags&maps.FlowDirect != 0 || !m.directIsThere(*f); !claimed {
			delete(m.fresh, f.outKey())
		}
	}
	if !claimed {
		return false
	}
	m.remove(f.clientKey())
	m.fresh[f.clientKey()] = *f
	return true
}

// triedWhole is the largest range of SNAT ports that is tried in order.
const triedWhole = 64

// snatPort returns the i-th port to try: by a hash of i, or in order in a small range.
func (m *model) snatPort(hash, i uint32) uint16 {
	n := (hash%m.ports + i) % m.ports
	if m.ports > triedWhole {
		n = uint32(mix(uint64(hash), uint64(i)<<32) % uint64(m.ports))
	}
	p := firstPort + n
	if p > 65535 {
		p -= 65536 - 1024
	}
	return uint16(p)
}

// heard confirms the flow if this packet of the client answers the backend. Entries of
// confirmed flows cannot be evicted. heard returns false if there is no room for them.
func (m *model) heard(f *flow, v view) bool {
	if f.flags&maps.FlowConfirmed != 0 || f.backendSaid&maps.SaidAnything == 0 || v.proto == protoTCP && isSYN(v.flags) ||
		!m.clients(*f) {
		return true
	}
	if there, ok := m.find(f.outKey()); ok && !there.sameClient(*f) {
		return true
	}
	if there, ok := m.find(f.wireKey()); f.node.port != 0 && ok && !there.same(*f) {
		f.node.port = 0 // it was unconfirmed for too long: another flow has its port
	}
	f.flags |= maps.FlowConfirmed
	if !m.move(f.clientKey(), *f) {
		f.flags &^= maps.FlowConfirmed
		return false
	}
	m.move(f.outKey(), *f)
	if f.node.port != 0 {
		m.move(f.wireKey(), *f)
	}
	return true
}

// move makes an entry of a flow a confirmed one, with everything noted in it. It returns
// false if there is no room.
func (m *model) move(k flowKey, f flow) bool {
	if !m.confirm(k, f) {
		return false
	}
	there := m.confirmed[k]
	if old, ok := m.fresh[k]; ok && old.sameEnds(f) {
		there.clientAt, there.backendAt = old.clientAt, old.backendAt
		there.clientSaid |= old.clientSaid
		there.backendSaid |= old.backendSaid
	}
	m.confirmed[k] = there
	delete(m.fresh, k)
	return true
}

// clients reports whether the client's entry belongs to this flow or does not exist.
func (m *model) clients(f flow) bool {
	there, ok := m.find(f.clientKey())
	return !ok || there.sameEnds(f)
}

// source sets the SNAT address and port of a flow. It returns an empty string, or the reason
// why it gets none.
func (m *model) source(f *flow, hash uint32) string {
	if f.flags&maps.FlowRemapped == 0 {
		addrs := m.world.devices[m.ifindex]
		addr := addrs[1]
		if f.backend.ip().Is4() {
			addr = addrs[0]
		}
		if !addr.IsValid() {
			return "no_node_address"
		}
		f.node.addr = addr.As16()
	}
	if !m.claimWire(f, hash) {
		return "ports_exhausted"
	}
	if !m.putSNAT(f.outKey(), *f) || m.clients(*f) && !m.putSNAT(f.clientKey(), *f) {
		return "flow_unrecorded"
	}
	return ""
}

// putSNAT writes a flow's SNAT address and port to an entry.
func (m *model) putSNAT(k flowKey, f flow) bool {
	all := m.fresh
	if f.flags&maps.FlowConfirmed != 0 {
		all = m.confirmed
	}
	there, ok := all[k]
	if !ok || !there.sameEnds(f) {
		return m.put(k, f)
	}
	there.node = f.node
	all[k] = there
	return true
}

// isReusable reports whether another flow may have this one's SNAT port (reusable). A backend
// that sent its FIN first keeps the port in TIME_WAIT. A handshake that makes no progress
// does not keep it.
func (f flow) isReusable(now int64) bool {
	halfOpen := f.proto == protoTCP && f.flags&(maps.FlowConfirmed|maps.FlowLocal) == 0 && now-f.used >= touchEvery
	return f.expired(now) || f.reset() || halfOpen || f.clientSaid&maps.SaidFIN != 0 && f.backendSaid&maps.SaidFINLater != 0
}

func (m *model) claimWire(f *flow, hash uint32) bool {
	for i := range uint32(snatTries) {
		f.node.port = m.snatPort(hash, i)
		old, there := m.find(f.wireKey())
		if there && (i < patience || !old.isReusable(f.used)) {
			continue
		}
		delete(m.confirmed, f.wireKey())
		m.fresh[f.wireKey()] = *f
		return true
	}
	f.node.port = 0
	return false
}
