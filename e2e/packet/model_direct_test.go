// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"math"

	"shunt/maps"
)

// never is before all times of the model.
const never = math.MinInt64 / 2

// isDirect reports whether a packet to an address that only backends have cannot belong to
// an unconfirmed flow.
func (m *model) isDirect(v view, isFragment bool) bool {
	switch {
	case isFragment:
		return false
	case v.proto == protoUDP:
		noted, ok := m.directs[flowKey{maps.FlowKeyIn, v.proto, v.src, v.dst}]
		return ok && m.now-noted < touchEvery
	}
	return !isSYN(v.flags) && m.now-m.lastDirect >= 3*int64(timeouts.TCPNew) && !m.isSNATPort(v.dst.port)
}

// direct handles a packet to a backend's own address, of no flow.
func (m *model) direct(v view) (uint32, string) {
	if v.proto == protoTCP && !isSYN(v.flags) {
		return unspec, "no_frontend"
	}
	key := flowKey{maps.FlowKeyIn, v.proto, v.src, v.dst}
	there, ok := m.find(ends(v.proto, v.src, v.dst))
	if !ok || there.expired(m.now) {
		m.directs[key] = m.now
		return unspec, "no_frontend"
	}
	if v.proto == protoUDP && v.src == there.backend && v.dst == there.inside() { // a reply
		m.directs[key] = m.now
		return unspec, "no_frontend"
	}
	delete(m.directs, key)
	f := flow{client: v.src, frontend: v.dst, backend: v.dst, inner: v.src.port, proto: v.proto, used: m.now,
		flags: maps.FlowDirect | there.flags&maps.FlowSNAT}
	if !m.begin(&f, v) {
		return shot, "collision"
	}
	if v.proto == protoTCP {
		m.lastDirect = m.now
	}
	m.toBackend(f, v, false)
	return unspec, "direct_remapped"
}

// directIsThere reports whether there may be a direct connection with the addresses and ports
// that the flow would have.
func (m *model) directIsThere(f flow) bool {
	noted, ok := m.directs[flowKey{maps.FlowKeyIn, f.proto, f.inside(), f.backend}]
	age := timeouts.UDPEstablished
	if f.proto == protoTCP {
		age = timeouts.TCPEstablished
	}
	return ok && f.used-noted < int64(age)
}

// synSize is how many bytes a SYN can acknowledge: its data and itself (track.h).
const synSize = 1 << 16

// isAnswer reports whether a backend's packet belongs to the flow: it answers the flow's
// SYN, or the backend has answered before.
func (m *model) isAnswer(f flow, v view) bool {
	if v.proto != protoTCP || f.flags&maps.FlowConfirmed != 0 || f.backendSaid&maps.SaidAnything != 0 {
		return true
	}
	there, _ := m.entry(f.outKey())
	asked := there.clientAt.seq
	return v.flags&ack != 0 && v.flags&(syn|rst) != 0 && (asked == 0 || v.at.ack-asked-1 < synSize)
}

// yield removes a flow that collides with a direct connection, and records that connection.
func (m *model) yield(f flow) {
	m.directs[flowKey{maps.FlowKeyIn, f.proto, f.inside(), f.backend}] = m.now
	m.remove(f.outKey())
	if m.clients(f) {
		m.remove(f.clientKey())
	}
}

// dropDirect removes an expired direct flow.
func (m *model) dropDirect(f flow) {
	if wire, ok := m.find(f.wireKey()); f.node.port != 0 && ok && wire.same(f) {
		m.remove(f.wireKey())
	}
	if there, ok := m.find(f.outKey()); ok && there.sameClient(f) {
		m.remove(f.outKey())
	}
	m.remove(f.clientKey())
}
