// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"cmp"
	"encoding/binary"
	"errors"
	"syscall"
	"time"

	"github.com/cilium/ebpf"

	"shunt/maps"
)

// flowKey is the key of maps flows and flows_new.
type flowKey struct {
	kind     uint8
	proto    uint8
	src, dst end
}

// flow is their value. used is in ns of CLOCK_MONOTONIC.
type flow struct {
	client, frontend, backend, node end
	inner                           uint16
	proto, flags                    uint8
	service, id                     uint32
	clientSaid, backendSaid         uint8
	used                            int64
	clientAt, backendAt             point
}

// point holds a side's sequence and acknowledgement numbers in its last TCP packet.
type point struct{ seq, ack uint32 }

func readEnd(addr [16]byte, port uint16) end { return end{addr, maps.HostPort(port)} }

func readKey(k maps.FlowKey) flowKey {
	return flowKey{k.Kind, k.Protocol, readEnd(k.Src.B, k.Sport), readEnd(k.Dst.B, k.Dport)}
}

func (k flowKey) write() maps.FlowKey {
	to := maps.FlowKey{Kind: k.kind, Protocol: k.proto, Sport: maps.HostPort(k.src.port), Dport: maps.HostPort(k.dst.port)}
	to.Src.B, to.Dst.B = k.src.addr, k.dst.addr
	return to
}

func readFlow(f maps.Flow) flow {
	return flow{client: readEnd(f.Client.B, f.ClientPort), frontend: readEnd(f.Frontend.B, f.FrontendPort),
		backend: readEnd(f.Backend.B, f.BackendPort), node: readEnd(f.Snat.B, f.SnatPort), inner: maps.HostPort(f.InnerPort),
		proto: f.Protocol, flags: f.Flags, service: f.ServiceId, id: f.BackendId,
		clientSaid: f.ClientSaid, backendSaid: f.BackendSaid, used: int64(f.Used),
		clientAt: point{network32(f.ClientAt.Seq), network32(f.ClientAt.Ack)}, backendAt: point{network32(f.BackendAt.Seq), network32(f.BackendAt.Ack)}}
}

// compare orders keys.
func (k flowKey) compare(o flowKey) int {
	return cmp.Or(cmp.Compare(k.kind, o.kind), cmp.Compare(k.proto, o.proto), k.src.compare(o.src), k.dst.compare(o.dst))
}

// The maps that hold flows.
const (
	confirmed = "flows"
	fresh     = "flows_new"
	directs   = "directs"
)

// flows returns the entries of one of the maps of flows.
func (r *rig) flows(name string) map[flowKey]flow {
	r.t.Helper()
	all := map[flowKey]flow{}
	var k maps.FlowKey
	var v maps.Flow
	it := r.set.Map(name).Iterate()
	for it.Next(&k, &v) {
		all[readKey(k)] = readFlow(v)
	}
	if err := it.Err(); err != nil {
		r.t.Fatal(err)
	}
	return all
}

// directs returns the entries of map directs.
func (r *rig) directs() map[flowKey]int64 {
	r.t.Helper()
	all := map[flowKey]int64{}
	var k maps.FlowKey
	var noted uint64
	it := r.set.Map(directs).Iterate()
	for it.Next(&k, &noted) {
		all[readKey(k)] = int64(noted)
	}
	if err := it.Err(); err != nil {
		r.t.Fatal(err)
	}
	return all
}

// lose removes the matching entries, as if they were evicted. At least one must match.
func (r *rig) lose(match func(flowKey, flow) bool) {
	r.t.Helper()
	n := 0
	for _, name := range []string{confirmed, fresh} {
		for k, f := range r.flows(name) {
			if !match(k, f) {
				continue
			}
			n++
			if err := r.set.Map(name).Delete(k.write()); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	if n == 0 {
		r.t.Fatal("no entry of a flow is there to be lost")
	}
}

// clear removes everything that programs have written.
func (r *rig) clear() {
	r.t.Helper()
	err := errors.Join(
		clearMap[maps.FlowKey, maps.Flow](r.set.Map(confirmed)),
		clearMap[maps.FlowKey, maps.Flow](r.set.Map(fresh)),
		clearMap[maps.FlowKey, uint64](r.set.Map(directs)),
		clearMap[maps.FragmentKey, maps.Fragment](r.set.Map("fragments")),
		clearMap[maps.AffinityKey, maps.AffinityValue](r.set.Map("affinity")))
	if err != nil {
		r.t.Fatal(err)
	}
	r.changeMeta(func(m *maps.Meta) { m.Direct, m.DirectNoted = 0, 0 })
}

// changeMeta changes the element of map meta, including fields that only programs write.
func (r *rig) changeMeta(change func(*maps.Meta)) {
	r.t.Helper()
	var m maps.Meta
	err := r.set.Map("meta").Lookup(uint32(0), &m)
	change(&m)
	if err = errors.Join(err, r.set.Map("meta").Put(uint32(0), &m)); err != nil {
		r.t.Fatal(err)
	}
}

// restart writes to the maps what a daemon writes when it starts and adopts them.
func (r *rig) restart() {
	r.t.Helper()
	abi, err := maps.ABI()
	if err != nil {
		r.t.Fatal(err)
	}
	r.kernel.UpdateMeta(func(m *maps.DaemonMeta) { *m = maps.DaemonMeta{Abi: abi, Pid: 4711, Started: time.Now().UnixNano()} })
}

func clearMap[K, V any](m *ebpf.Map) error {
	var keys []K
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		keys = append(keys, k)
	}
	errs := []error{it.Err()}
	for _, k := range keys {
		errs = append(errs, m.Delete(k))
	}
	return errors.Join(errs...)
}

// age makes everything in the maps older by d, so that no test waits for a timeout.
func (r *rig) age(d time.Duration) {
	r.t.Helper()
	errs := []error{}
	for _, name := range []string{confirmed, fresh} {
		errs = append(errs, rewrite(r.set.Map(name), func(_ maps.FlowKey, f *maps.Flow) { f.Used -= uint64(d) }))
	}
	errs = append(errs, rewrite(r.set.Map(directs), func(_ maps.FlowKey, noted *uint64) { *noted -= uint64(d) }))
	r.changeMeta(func(m *maps.Meta) {
		for _, at := range []*uint64{&m.Direct, &m.DirectNoted} {
			if *at != 0 {
				*at -= uint64(d)
			}
		}
	})
	errs = append(errs, rewrite(r.set.Map("affinity"),
		func(_ maps.AffinityKey, a *maps.AffinityValue) { a.LastUsed -= uint64(d) }),
		rewrite(r.set.Map("fragments"), func(_ maps.FragmentKey, f *maps.Fragment) { f.Noted -= uint64(d) }))
	if err := errors.Join(errs...); err != nil {
		r.t.Fatal(err)
	}
}

func rewrite[K comparable, V any](m *ebpf.Map, change func(K, *V)) error {
	all := map[K]V{}
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		all[k] = v
	}
	errs := []error{it.Err()}
	for k, v := range all {
		change(k, &v)
		errs = append(errs, m.Update(k, v, ebpf.UpdateExist))
	}
	return errors.Join(errs...)
}

// fill leaves no room in map flows.
func (r *rig) fill() {
	r.t.Helper()
	for i := range r.sizes.Flows + 1 {
		k := maps.FlowKey{Kind: maps.FlowKeyIn, Protocol: protoSCTP}
		binary.NativeEndian.PutUint32(k.Src.B[:], i)
		err := r.set.Map(confirmed).Put(k, maps.Flow{})
		if errors.Is(err, syscall.E2BIG) {
			return
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	r.t.Fatalf("map flows took more than %d entries", r.sizes.Flows)
}
