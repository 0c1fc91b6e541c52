// SPDX-License-Identifier: Apache-2.0

package packet

import "shunt/maps"

// in handles an arriving packet with ports.
func (m *model) in(v view, isFragment bool) (uint32, string) {
	frontends, node, cluster := m.means(v.dst)
	known, direct := frontends || node || cluster, m.backends[v.dst.ip()]
	f, ok := m.confirmed[flowKey{maps.FlowKeyIn, v.proto, v.src, v.dst}]
	if !ok && direct && !known && m.isDirect(v, isFragment) {
		return unspec, "no_frontend"
	}
	if !ok && (known || direct || m.isSNATPort(v.dst.port)) {
		f, ok = m.fresh[flowKey{maps.FlowKeyIn, v.proto, v.src, v.dst}]
	}
	f.clientAt, f.backendAt = point{}, point{}
	if ok && !f.expired(m.now) {
		if f.client != v.src || f.frontend != v.dst {
			return m.fromWire(f, v, isFragment)
		}
		if f.flags&maps.FlowLocal != 0 {
			if m.isSNATPort(v.dst.port) {
				m.hold(f)
			}
			return unspec, "local_flow"
		}
		if f.flags&maps.FlowLocal == 0 && m.goesOn(f, v) {
			if there, ok := m.find(f.outKey()); ok && f.closed() && !there.sameClient(f) {
				return shot, "flow_over"
			}
			m.point(f, f.clientKey(), v, isFragment, true)
			m.touch(&f, v, true)
			m.asksAgain(f, v)
			reason := "flow_kept"
			if m.acknowledges(f, v) && !m.heard(&f, v) {
				reason = "unconfirmed"
			}
			m.toBackend(f, v, isFragment)
			return unspec, reason
		}
	}
	if ok && f.flags&maps.FlowDirect != 0 {
		m.dropDirect(f)
	}
	if isFragment {
		return m.lostFragment(v)
	}
	if !known && direct {
		return m.direct(v)
	}
	if !known {
		if reason := m.nobody(v.dst); reason == "unallocated" {
			return shot, reason
		}
		return unspec, "no_frontend"
	}
	return m.first(v)
}

func (m *model) isSNATPort(port uint16) bool {
	p := uint32(port)
	if p < firstPort {
		p += 65536 - 1024
	}
	return p-firstPort < m.ports
}

func (m *model) toBackend(f flow, v view, isFragment bool) {
	m.rewrite(v, isFragment, false, f.backend.addr, f.inner, f.backend.port)
}

// fromWire handles a backend's packet to the SNAT address. Its destination becomes the
// client.
func (m *model) fromWire(f flow, v view, isFragment bool) (uint32, string) {
	m.point(f, f.wireKey(), v, isFragment, false)
	m.touch(&f, v, false)
	m.rewrite(v, isFragment, false, f.client.addr, f.backend.port, f.inner)
	return unspec, "source_restored"
}

// first handles a packet of no flow to a frontend.
func (m *model) first(v view) (uint32, string) {
	if v.proto == protoTCP && !isSYN(v.flags) {
		return m.middle(v)
	}
	f, reason := m.choose(v, false)
	switch reason {
	case "translated", "affinity_kept":
	case "no_frontend":
		if m.backends[v.dst.ip()] {
			return m.direct(v)
		}
		return unspec, reason
	case "no_endpoint", "undefined_port":
		return m.refuse(v, reason)
	default:
		return shot, reason
	}
	if !m.begin(&f, v) {
		return shot, "collision"
	}
	m.toBackend(f, v, false)
	return unspec, reason
}

// refuse answers a packet that cannot be served.
func (m *model) refuse(v view, reason string) (uint32, string) {
	src := v.src.ip()
	last := src.AsSlice()
	reserved := src.Is4() && (last[0] == 0 || last[0] >= 224)
	switch {
	case v.proto == protoTCP && v.flags&rst != 0, v.src.addr == v.dst.addr, reserved, src.IsUnspecified(), src.IsLoopback(), src.IsMulticast():
		return shot, "answer_withheld"
	case v.proto == protoTCP && m.reset(v), v.proto == protoUDP && m.unreachable(v):
		return redirect, reason
	}
	return shot, "write_failed"
}

// middle handles a TCP packet that does not begin a connection: the client's entry may be
// lost while the other one exists.
func (m *model) middle(v view) (uint32, string) {
	guess, reason := m.choose(v, true)
	if reason == "no_frontend" {
		return unspec, reason
	}
	if reason != "translated" && reason != "affinity_kept" {
		return m.unknown(v, reason)
	}
	f, ok := m.find(guess.outKey())
	if !ok || !f.sameClient(guess) || f.expired(m.now) {
		return m.unknown(v, reason)
	}
	if !m.put(f.clientKey(), f) {
		return shot, "flow_unrecorded"
	}
	m.toBackend(f, v, false)
	return unspec, "flow_kept"
}

// unknown handles a TCP packet of a connection that has no flow.
func (m *model) unknown(v view, reason string) (uint32, string) {
	_, node, _ := m.means(v.dst)
	switch {
	case !m.world.resets || node:
		return unspec, "no_flow"
	case reason == "source_range":
		return shot, reason
	}
	return m.refuse(v, "connection_unknown")
}

// out handles a leaving packet with ports.
func (m *model) out(v view, isFragment bool) (uint32, string) {
	f, ok := m.find(ends(v.proto, v.src, v.dst))
	if f.flags&maps.FlowRemapped == 0 && f.expired(m.now) {
		ok = false
	}
	switch {
	case ok && v.src == f.backend && !m.isAnswer(f, v):
		if v.flags&rst == 0 {
			m.yield(f)
		}
		return unspec, "egress_passed"
	case ok && v.src == f.backend:
		m.point(f, f.outKey(), v, isFragment, false)
		m.touch(&f, v, false)
		m.rewrite(v, isFragment, true, f.frontend.addr, f.frontend.port, f.client.port)
		return unspec, "reply_restored"
	case ok && (f.flags&maps.FlowRemapped == 0 || m.followRemapped(&f, v, isFragment)):
		return m.toWire(f, v, isFragment)
	}
	if !isFragment && (v.proto == protoUDP || isSYN(v.flags)) && !m.note(v) {
		f := flow{client: v.src, inner: v.src.port, frontend: v.dst, backend: v.dst, proto: v.proto,
			flags: maps.FlowSNAT | maps.FlowRemapped, used: m.now}
		f.node.addr = v.src.addr
		return m.toWire(f, v, isFragment)
	}
	return unspec, "egress_passed"
}

// followRemapped handles a packet from the client of a remapped flow. It returns false if
// the packet begins another flow.
func (m *model) followRemapped(f *flow, v view, isFragment bool) bool {
	if f.expired(m.now) || f.closed() && (v.proto == protoUDP || isSYN(v.flags)) {
		if wire, ok := m.find(f.wireKey()); ok && wire.same(*f) {
			m.remove(f.wireKey())
		}
		m.remove(f.outKey())
		m.remove(f.clientKey())
		return false
	}
	m.point(*f, f.outKey(), v, isFragment, true)
	m.touch(f, v, true)
	m.heard(f, v)
	return true
}

// toWire handles a client's packet to a backend.
func (m *model) toWire(f flow, v view, isFragment bool) (uint32, string) {
	if f.flags&maps.FlowSNAT == 0 {
		return unspec, "source_kept"
	}
	over := f.closed()
	if f.node.port != 0 && (over || f.flags&maps.FlowConfirmed == 0) {
		there, ok := m.find(f.wireKey())
		switch {
		case ok && there.same(f), !ok && m.put(f.wireKey(), f):
		case over:
			return shot, "flow_over"
		default:
			f.node.port = 0
		}
	}
	if f.node.port == 0 {
		if reason := m.source(&f, pick(v.src, v.dst, v.proto)); reason != "" {
			return shot, reason
		}
	}
	m.rewrite(v, isFragment, true, f.node.addr, f.node.port, f.backend.port)
	return unspec, "source_translated"
}

// note records a local flow if a packet of this node begins from a port that a flow or a
// service might have: its replies must not be translated. It returns false if a flow has
// the port.
func (m *model) note(v view) bool {
	_, node, _ := m.means(v.src)
	_, found, _ := m.frontend(v.src, protoUDP)
	_, taken := m.find(flowKey{maps.FlowKeyIn, v.proto, v.dst, v.src})
	ours := m.isSNATPort(v.src.port) && (m.isDevice(v.src) || taken)
	if !ours && (v.proto != protoUDP || !node || !found) {
		return true
	}
	f := flow{client: v.dst, frontend: v.src, proto: v.proto, flags: maps.FlowLocal, used: m.now}
	old, there := m.find(f.clientKey())
	switch {
	case there && old.flags&maps.FlowLocal != 0:
		m.hold(old)
	case !there || old.isReusable(m.now):
		delete(m.confirmed, f.clientKey())
		m.fresh[f.clientKey()] = f
	default:
		return !ours
	}
	return true
}

// hold renews a local flow.
func (m *model) hold(f flow) {
	if m.now >= f.used+touchEvery {
		f.used = m.now
		m.refresh(f.clientKey(), f, f)
	}
}

// isDevice reports whether an address is the SNAT address of the device.
func (m *model) isDevice(e end) bool {
	for _, addr := range m.world.devices[m.ifindex] {
		if addr.IsValid() && addr.As16() == e.addr {
			return true
		}
	}
	return false
}
