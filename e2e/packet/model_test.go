// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

// model implements the rules of the packet path slowly and plainly, with Go's maps instead
// of the kernel's. Only age moves its clock.
type model struct {
	world   *world
	known   map[netip.Addr]bool // addresses of frontends
	ports   uint32              // number of SNAT ports, from firstPort on
	pod     bool                // on a pod's device
	cidrs   []netip.Prefix
	ifindex uint32
	mac     [6]byte

	// room is the number of confirmed entries that fit.
	room             int
	confirmed, fresh map[flowKey]flow
	directs          map[flowKey]int64
	lastDirect       int64               // when the last remapped direct TCP connection began, never if none did
	backends         map[netip.Addr]bool // addresses that are or were of backends
	fragments        map[fragmentKey]fragment
	affinity         map[affinityKey]affinityValue
	counts           map[string]uint64
	now              int64

	// Of the current run: the frame, and the offset of its packet.
	b  []byte
	at int
	h  hook
}

// fragmentKey is the key by which a later fragment finds the ports of the first. IPv4 also
// needs the protocol.
type fragmentKey struct {
	src, dst [16]byte
	id       uint32
	proto    uint8
	hook     hook
}

// fragment holds the first fragment's ports, and when it was seen.
type fragment struct {
	sport, dport uint16
	proto        uint8
	noted        int64
}

// fragmentAge is how long the ports of a first fragment are kept.
const fragmentAge = 31 * time.Second

type affinityKey struct {
	service uint32
	client  [16]byte
}

type affinityValue struct {
	backend uint32
	used    int64
}

func newModel(ports uint32, pod bool) *model {
	m := &model{world: newWorld(), ports: ports, pod: pod, cidrs: options(ports).ClusterCIDRs, counts: map[string]uint64{},
		backends: map[netip.Addr]bool{}}
	m.clear()
	return m
}

// serve replaces the model's world.
func (m *model) serve(w *world) {
	m.world, m.known = w.clone(), map[netip.Addr]bool{}
	for _, b := range w.backends {
		m.backends[b.addr.Addr()] = true
	}
	for k := range w.frontends {
		if !k.addr.Addr().IsUnspecified() { // the unspecified address stands for node ports
			m.known[k.addr.Addr()] = true
		}
	}
}

// clear removes all state except the counters.
func (m *model) clear() {
	m.confirmed, m.fresh, m.directs, m.lastDirect = map[flowKey]flow{}, map[flowKey]flow{}, map[flowKey]int64{}, never
	m.fragments, m.affinity = map[fragmentKey]fragment{}, map[affinityKey]affinityValue{}
}

// run runs a frame with an Ethernet header through the model. It returns the verdict, the
// reason, and the resulting frame if it is not dropped.
func (m *model) run(h hook, frame []byte) (verdict uint32, reason string, out []byte) {
	m.b, m.at, m.h = bytes.Clone(frame), ethLen, h
	verdict, reason = m.packet()
	m.counts[reason]++
	return verdict, reason, m.b
}

func (m *model) packet() (uint32, string) {
	if m.h == ingress && [6]byte(m.b[:6]) != m.mac {
		return unspec, "protocol"
	}
	var v view
	kind := isOther
	switch binary.BigEndian.Uint16(m.b[12:]) {
	case unix.ETH_P_IP:
		v, kind = read4(m.b, m.at, false)
	case unix.ETH_P_IPV6:
		v, kind = read6(m.b, m.at, false)
	}
	switch kind {
	case isMalformed:
		return unspec, "malformed"
	case isICMP:
		if m.h == ingress {
			return m.icmpIn(v)
		}
		return m.icmpOut(v)
	case isFragment:
		return m.fragment(v)
	case isTransport:
		if v.first {
			m.fragments[m.fragmentKey(v)] = fragment{v.src.port, v.dst.port, v.proto, m.now}
		}
		if m.h == ingress {
			return m.in(v, false)
		}
		return m.out(v, false)
	}
	return unspec, "protocol"
}

func (m *model) fragmentKey(v view) fragmentKey {
	k := fragmentKey{v.src.addr, v.dst.addr, v.id, 0, m.h}
	if v.v4 {
		k.proto = v.datagram
	}
	return k
}

// fragment sets the ports of a later fragment to those of the first one. If these are not known, the
// fragment belongs to no flow. It is dropped if it is for a frontend's address that the node itself
// does not have.
func (m *model) fragment(v view) (uint32, string) {
	first, ok := m.fragments[m.fragmentKey(v)]
	if !ok || m.now >= first.noted+int64(fragmentAge) {
		if m.h == ingress {
			return m.lostFragment(v)
		}
		return unspec, "fragment_passed"
	}
	v.src.port, v.dst.port, v.proto, v.flags = first.sport, first.dport, first.proto, 0
	if m.h == ingress {
		return m.in(v, true)
	}
	return m.out(v, true)
}

func (m *model) lostFragment(v view) (uint32, string) {
	if frontends, node, _ := m.means(v.dst); frontends && !node {
		return shot, "fragment_unknown"
	}
	return unspec, "fragment_passed"
}

// means returns what an address is to this node: an address of frontends, a node address
// that takes node ports, a cluster IP.
func (m *model) means(e end) (frontends, node, cluster bool) {
	a := e.ip()
	_, node = m.world.nodeAddrs[a]
	return m.known[a], node, m.world.clusterIPs[a]
}

// frontend returns the frontend of a packet. undefined means a port of a cluster IP without
// a frontend.
func (m *model) frontend(to end, proto uint8) (f frontend, found, undefined bool) {
	addr := netip.AddrPortFrom(to.ip(), to.port)
	if f, ok := m.world.frontends[frontendKey{addr, proto}]; ok && !addr.Addr().IsUnspecified() {
		return f, true, false
	}
	if own, ok := m.world.nodeAddrs[addr.Addr()]; ok && !own {
		any := netip.IPv6Unspecified()
		if addr.Addr().Is4() {
			any = netip.IPv4Unspecified()
		}
		if f, ok := m.world.frontends[frontendKey{netip.AddrPortFrom(any, to.port), proto}]; ok {
			return f, true, false
		}
	}
	return frontend{}, false, m.world.clusterIPs[addr.Addr()]
}

// nobody returns the reason for a packet to an address without a frontend.
func (m *model) nobody(to end) string {
	for p := range m.world.cidrs {
		if p.Contains(to.ip()) && !m.world.allocated[to.ip()] {
			return "unallocated"
		}
	}
	return "no_frontend"
}

// choose picks a backend for a new flow of this packet. With forgetful it records no
// affinity.
func (m *model) choose(v view, forgetful bool) (flow, string) {
	f, found, undefined := m.frontend(v.dst, v.proto)
	switch {
	case undefined:
		return flow{}, "undefined_port"
	case !found:
		return flow{}, m.nobody(v.dst)
	case f.flags&maps.SourceRanges != 0 && !slices.ContainsFunc(m.world.sources[f.service],
		func(p netip.Prefix) bool { return p.Contains(v.src.ip()) }):
		return flow{}, "source_range"
	}
	ids, set := f.outside, f.flags&maps.OutsideLocal != 0
	if m.inside(v) {
		ids, set = f.inside, f.flags&maps.InsideLocal != 0
	}
	if len(ids) == 0 {
		if f.flags&maps.Elsewhere != 0 {
			return flow{}, "no_local_endpoint"
		}
		return flow{}, "no_endpoint"
	}
	id, kept := m.kept(f, v, set, forgetful)
	reason := "affinity_kept"
	if !kept {
		id, reason = ids[pick(v.src, v.dst, v.proto)%uint32(len(ids))], "translated"
		if f.affinity != 0 && !forgetful {
			m.affinity[affinityKey{f.service, v.src.addr}] = affinityValue{id, m.now}
		}
	}
	b := m.world.backends[id]
	fl := flow{client: v.src, frontend: v.dst, backend: newEnd(b.addr), inner: v.src.port, proto: v.proto, service: f.service,
		id: id, used: m.now}
	if fl.client.addr == fl.backend.addr || !m.pod && b.flags&maps.OnNode == 0 {
		fl.flags = maps.FlowSNAT
	}
	return fl, reason
}

// inside reports whether the client is a pod of the cluster.
func (m *model) inside(v view) bool {
	return m.pod || slices.ContainsFunc(m.cidrs, func(p netip.Prefix) bool { return p.Contains(v.src.ip()) })
}

// kept returns the backend that the client has by affinity. With forgetful it does not
// renew the affinity.
func (m *model) kept(f frontend, v view, local, forgetful bool) (uint32, bool) {
	k := affinityKey{f.service, v.src.addr}
	a, ok := m.affinity[k]
	want := maps.ClusterSet
	if local {
		want = maps.LocalSet
	}
	b := m.world.backends[a.backend]
	if f.affinity == 0 || !ok || a.used+int64(f.affinity)*1e9 <= m.now || b.service != f.service || b.flags&want == 0 {
		return 0, false
	}
	if !forgetful {
		m.affinity[k] = affinityValue{a.backend, m.now}
	}
	return a.backend, true
}
