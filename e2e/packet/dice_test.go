// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"shunt/maps"
)

// dice generates random packets. Their addresses are few, so that packets hit the same
// flows: outside clients, pods of this cluster and the services' addresses, with few ports.
type dice struct {
	*rand.Rand
	seed uint64
	tape *tape // the source of random numbers of a fuzzer, otherwise nil
	// recent holds packets that were passed on. Later packets are derived from them.
	recent [8]passed
	next   int
}

// passed is a packet before and after a hook.
type passed struct {
	hook    hook
	in, out []byte
}

func newDice(seed uint64) *dice {
	return &dice{Rand: rand.New(rand.NewPCG(seed, 1)), seed: seed}
}

// tape supplies random numbers that a fuzzer wrote.
type tape struct {
	left []byte
	over uint64 // numbers supplied after the tape's end
}

func newTapeDice(b []byte) *dice {
	t := &tape{left: b}
	return &dice{Rand: rand.New(t), tape: t}
}

// Uint64 returns a number whose bits all depend on the next two bytes. After the tape's end
// the numbers still differ, so that loops which draw until a number fits terminate.
func (t *tape) Uint64() uint64 {
	var two [2]byte
	if len(t.left) == 0 {
		t.over++
		return mix(mix(seed, t.over), t.over)
	}
	t.left = t.left[copy(two[:], t.left):]
	return mix(seed, uint64(binary.BigEndian.Uint16(two[:])))
}

// again returns dice that produce the same numbers from the start.
func (d *dice) again() *dice { return newDice(d.seed) }

// one returns true once in n times.
func (d *dice) one(n int) bool { return d.IntN(n) == 0 }

// universe has a plan's addresses for random packets.
type universe struct {
	plan
	clients, frontends, backends []netip.AddrPort
}

var universes = [2]universe{newUniverse(false), newUniverse(true)}

// Services of the universe: what each frontend address serves at ports 80 to 85.
const (
	plainService = iota
	sharingService
	affineService
	rangesService
	localService
	emptyService
	services
)

func newUniverse(v6 bool) universe {
	u := universe{plan: makePlan(v6)}
	for _, a := range []netip.Addr{u.client.Addr(), u.other.Addr(), u.pod.Addr(), u.local.Addr(), u.node.Addr()} {
		for _, port := range []uint16{40000, 40001, 8080, 30080} {
			u.clients = append(u.clients, netip.AddrPortFrom(a, port))
		}
	}
	for s := range uint16(services + 1) { // the last one has addresses without a service
		u.frontends = append(u.frontends, at(u.clusterIP, 80+s), at(u.loadBalancer, 80+s), at(u.external, 80+s), at(u.node, 30080+s))
	}
	u.frontends = append(u.frontends, netip.AddrPortFrom(u.clusterIP.Addr().Next(), 80)) // an unallocated address
	for i := range uint16(2) {
		u.backends = append(u.backends, at(u.local, 8080+i), at(u.remote, 8080+i), at(u.host, 8080+i))
	}
	return u
}

// world returns services of all sorts, in both families and over both protocols.
func (d *dice) world() *world {
	w := newWorld()
	for _, u := range universes {
		d.serve(w, u, protoTCP)
		d.serve(w, u, protoUDP)
		lo := netip.MustParseAddr("127.0.0.1")
		if u.v6 {
			lo = netip.IPv6Loopback()
		}
		w.nodeAddrs[u.node.Addr()], w.nodeAddrs[lo] = false, true
		w.clusterIPs[u.clusterIP.Addr()] = true
		if d.one(2) {
			w.cidrs[netip.PrefixFrom(u.clusterIP.Addr(), u.clusterIP.Addr().BitLen()-8).Masked()] = true
			if u.v6 { // in IPv4 it stays unallocated
				w.allocated[u.clusterIP.Addr().Next()] = true
			}
		}
	}
	w.devices[loopback] = [2]netip.Addr{universes[0].wire, universes[1].wire}
	w.resets = d.one(2)
	return w
}

// id returns a service's id. The ids of its backends are derived from it.
func (u universe) id(service int, proto uint8) uint32 {
	id := uint32(service)*4 + 1
	if u.v6 {
		id++
	}
	if proto == protoUDP {
		id += 2
	}
	return id
}

func (d *dice) serve(w *world, u universe, proto uint8) {
	for s := range services {
		id := u.id(s, proto)
		f := frontend{proto: proto, service: id, inside: []uint32{}, outside: []uint32{}}
		for i, b := range u.backends {
			flags := maps.ClusterSet
			if b.Addr() == u.local.Addr() || b.Addr() == u.host.Addr() {
				flags |= maps.LocalSet | maps.OnNode
			}
			record := id*8 + uint32(i)
			w.backends[record] = endpoint{addr: b, proto: proto, flags: flags, service: id}
			if s != emptyService {
				f.inside = append(f.inside, record)
			}
			if s != emptyService && s != localService {
				f.outside = append(f.outside, record)
			}
		}
		switch s {
		case affineService:
			f.affinity = 21
		case localService:
			f.flags = maps.OutsideLocal | maps.Elsewhere
		}
		for kind, addr := range u.kinds() {
			f := f
			f.kind, f.addr = kind, at(addr, addr.Port()+uint16(s))
			if kind == maps.NodePort {
				f.addr = netip.AddrPortFrom(u.any(), f.addr.Port())
			}
			if kind == maps.LoadBalancerIP && s == rangesService {
				f.flags |= maps.SourceRanges
				w.sources[id] = []netip.Prefix{netip.PrefixFrom(u.client.Addr(), u.client.Addr().BitLen())}
			}
			w.frontends[f.key()] = f
		}
	}
}

// change simulates a change of a service's endpoints: some leave the sets, some backends
// are freed, and some ids get another endpoint.
func (d *dice) change(w *world) {
	u := universes[d.IntN(2)]
	proto := []uint8{protoTCP, protoUDP}[d.IntN(2)]
	s := d.IntN(services)
	id := u.id(s, proto)
	used := []uint32{}
	for i, b := range u.backends {
		record := id*8 + uint32(i)
		delete(w.backends, record)
		flags := maps.ClusterSet
		if b.Addr() != u.remote.Addr() {
			flags |= maps.LocalSet | maps.OnNode
		}
		switch d.IntN(6) {
		case 0: // freed
		case 1: // terminating, for open flows only
			w.backends[record] = endpoint{b, proto, flags&maps.OnNode | maps.Terminating, id}
		case 2: // the id gets another endpoint
			w.backends[record] = endpoint{u.backends[(i+3)%len(u.backends)], proto, flags, id}
			used = append(used, record)
		default:
			w.backends[record] = endpoint{b, proto, flags, id}
			used = append(used, record)
		}
	}
	if d.one(8) {
		used = nil
	}
	for k, f := range w.frontends {
		if f.service != id {
			continue
		}
		f.inside = used
		if s != localService {
			f.outside = used
		}
		w.frontends[k] = f
	}
}

// saw keeps a packet that was passed on, and one in eight of those that were not changed.
func (d *dice) saw(h hook, in []byte, r result) {
	if r.verdict != unspec || len(r.data) < ethLen+20 || bytes.Equal(in, r.data[ethLen:]) && !d.one(8) {
		return
	}
	to := &d.recent[d.next%len(d.recent)]
	d.next++
	to.hook, to.in, to.out = h, append(to.in[:0], in...), append(to.out[:0], r.data[ethLen:]...)
}

// packet returns a random packet and its hook.
func (d *dice) packet() (hook, []byte) {
	h := hook(d.IntN(2))
	var b []byte
	switch n := d.IntN(16); {
	case n < 3:
		h, b = ingress, d.fresh(universes[d.IntN(2)].clients, universes[d.IntN(2)].frontends)
	case n < 4:
		u := universes[d.IntN(2)]
		all := append(append(append([]netip.AddrPort{}, u.clients...), u.frontends...), u.backends...)
		b = d.fresh(all, all)
	case n < 5: // from clients' ports straight to backends
		u := universes[d.IntN(2)]
		h, b = ingress, d.fresh(u.clients, u.backends)
	default:
		h, b = d.follow()
	}
	if d.one(12) {
		b = d.spoil(b)
	}
	return h, b
}

// fresh returns a packet from one of the sources to one of the destinations, of one family.
func (d *dice) fresh(from, to []netip.AddrPort) []byte {
	src := from[d.IntN(len(from))]
	dst := to[d.IntN(len(to))]
	for dst.Addr().Is4() != src.Addr().Is4() {
		src, dst = from[d.IntN(len(from))], to[d.IntN(len(to))]
		if from[0].Addr().Is4() == from[len(from)-1].Addr().Is4() && to[0].Addr().Is4() != src.Addr().Is4() {
			dst = universes[map[bool]int{true: 0, false: 1}[src.Addr().Is4()]].frontends[d.IntN(services*4)]
		}
	}
	return d.dress(src, dst).bytes()
}

// dress returns a random packet between two ends.
func (d *dice) dress(src, dst netip.AddrPort) pkt {
	p := udp(src, dst, fmt.Sprintf("datagram %d", d.IntN(100)))
	if d.one(2) {
		flags := []uint8{syn, syn, syn, ack, ack, ack | psh, fin | ack, fin | ack, rst, rst | ack, syn | ack, 0, syn | fin, 255}
		p = tcp(src, dst, flags[d.IntN(len(flags))])
		p.seq, p.ack = d.place(), d.place()
		if d.one(4) {
			p.payload = make([]byte, d.IntN(50))
		}
		if d.one(8) {
			p.options = make([]byte, 4*d.IntN(11))
		}
	}
	p.tos, p.ttl, p.id, p.df = uint8(d.IntN(256)), uint8(d.IntN(256)), d.Uint32N(4), d.one(2)
	p.noSum = d.one(6)
	if d.one(8) {
		p.ipOptions = make([]byte, 4*d.IntN(11))
	}
	if d.one(8) {
		p.exts = d.extensions()
	}
	if d.one(16) {
		p = d.cut(p)
	}
	return p
}

// place returns a random sequence or acknowledgement number, often one that the other side
// can accept.
func (d *dice) place() uint32 {
	places := []uint32{0, 1, lastAck - 1, lastAck, lastAck + synSize - 1, lastAck + synSize, firstSeq, firstSeq + segment, firstSeq + segment + 1, firstSeq + window, windowBehind,
		0xffffffff}
	if d.one(8) {
		return d.Uint32()
	}
	return places[d.IntN(len(places))]
}

func (d *dice) extensions() []ext {
	var all []ext
	for range d.IntN(4) {
		kind := []uint8{protoHopByHop, protoRouting, protoDest, protoDest}[d.IntN(4)]
		all = append(all, ext{kind, make([]byte, 8*(1+d.IntN(3))-2)})
	}
	if d.one(20) {
		for range 8 {
			all = append(all, ext{protoDest, make([]byte, 6)})
		}
	}
	return all
}

// cut returns one fragment of a packet.
func (d *dice) cut(p pkt) pkt {
	p.payload = append(p.payload, make([]byte, 64)...)
	fragments := p.fragments(d.Uint32N(3), 32, 64)
	return fragments[d.IntN(len(fragments))]
}

// follow returns a packet derived from an earlier one: the sender's next one, the same one
// at its next hook, a reply to it, or an error about it.
func (d *dice) follow() (hook, []byte) {
	last := d.recent[d.IntN(len(d.recent))]
	if last.in == nil {
		return ingress, d.fresh(universes[0].clients, universes[0].frontends)
	}
	in, kind := readPacket(last.in, 0)
	out, _ := readPacket(last.out, 0)
	if kind != isTransport {
		return egress - last.hook, bytes.Clone(last.out)
	}
	switch n := d.IntN(16); {
	case n < 5:
		return last.hook, d.continues(in, in.src, in.dst)
	case n < 9 && last.hook == ingress: // through the node's stack
		return egress, bytes.Clone(last.out)
	case n < 13: // a reply from its receiver: in the node's stack, or on the wire
		return egress - last.hook, d.continues(out, out.dst, out.src)
	case n < 15:
		return egress - last.hook, d.complain(out, last.out)
	}
	return hook(d.IntN(2)), d.continues(out, out.src, out.dst)
}

// continues returns a packet between these ends, mostly of the same protocol.
func (d *dice) continues(v view, src, dst end) []byte {
	p := d.dress(netip.AddrPortFrom(src.ip(), src.port), netip.AddrPortFrom(dst.ip(), dst.port))
	for p.proto != v.proto && !d.one(20) {
		p = d.dress(p.src, p.dst)
	}
	return p.bytes()
}

// complain returns an ICMP error about a packet, from its receiver or from a router.
func (d *dice) complain(v view, packet []byte) []byte {
	quote := bytes.Clone(packet)
	if d.one(2) {
		quote = quote[:d.IntN(len(quote)+1)]
	}
	u := universes[0]
	kinds := []uint8{3, 3, 11, 12, 4, 5, 0, 8}
	if !v.v4 {
		u, kinds = universes[1], []uint8{1, 2, 3, 4, 1, 128, 136}
	}
	from := v.dst.ip()
	if d.one(2) {
		from = u.clients[d.IntN(len(u.clients))].Addr()
	}
	to := v.src.ip()
	if d.one(8) {
		to = u.frontends[d.IntN(len(u.frontends))].Addr()
	}
	e := icmpError(from, to, kinds[d.IntN(len(kinds))], uint8(d.IntN(6)), d.Uint32N(1500), quote)
	e.df = d.one(2)
	if d.one(12) {
		e.ipOptions, e.exts = make([]byte, 4*d.IntN(11)), d.extensions()
	}
	return e.bytes()
}
