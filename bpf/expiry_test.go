// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"shunt/maps"
)

// Times of last use for tests without waiting: longAgo is the oldest possible one. always and
// never are matching timeouts.
const (
	longAgo = 1
	always  = time.Nanosecond
	never   = time.Duration(1) << 62
)

// allNever are timeouts by which no flow ever expires.
var allNever = Timeouts{never, never, never, never, never, never}

// expiryRig is an Expiry on the test's own maps. The test calls its scans.
type expiryRig struct {
	*Expiry
	t   *testing.T
	log *observer.ObservedLogs
}

// expiryWay is a method of finding and deleting expired entries.
type expiryWay struct {
	name        string
	iter, takes bool
}

var expiryWays = []expiryWay{{"all that this kernel has", true, true}, {"as without an iterator", false, true},
	{"as without look-up-and-delete", true, false}, {"as with neither", false, false}}

// eachWay runs a test with all methods that kernels have.
func eachWay(t *testing.T, size uint32, timeouts Timeouts, test func(r *expiryRig)) {
	inWays(t, expiryWays, size, timeouts, test)
}

func inWays(t *testing.T, ways []expiryWay, size uint32, timeouts Timeouts, test func(r *expiryRig)) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			set, _, err := maps.Open(bpffs(t), maps.Sizes{Services: 16, Slots: 16, Backends: 16, Affinity: 16, Sources: 16, Flows: size})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = set.Close() })
			core, logs := observer.New(zap.DebugLevel)
			r := &expiryRig{t: t, log: logs,
				Expiry: NewExpiry(ExpiryOptions{Set: set, Timeouts: timeouts, Log: zap.New(core)})}
			r.iterFrom = 0
			if err := r.open(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(r.close)
			if !w.iter && r.iter != nil {
				r.close()
				r.iter = nil
			}
			if w.iter && r.iter == nil {
				t.Fatalf("this kernel has iterators over maps: %v", logs.All())
			}
			if !r.table.takes {
				t.Log("this kernel has no look-up-and-delete")
			}
			r.table.takes = r.table.takes && w.takes
			test(r)
		})
	}
}

func (r *expiryRig) mustPass() (enough bool) {
	r.t.Helper()
	enough, err := r.pass(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return enough
}

// flowOf returns flow number i in a given state; with FlowSNAT it has a SNAT address.
func flowOf(i int, protocol, flags uint8, used uint64, said ...uint8) maps.Flow {
	client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, byte(i >> 16), byte(i >> 8), byte(i)}), 1000)
	e := maps.Ends{Client: client, Inner: client, Frontend: netip.MustParseAddrPort("10.96.0.1:80"),
		Backend: netip.MustParseAddrPort("10.244.0.1:8080"), SNAT: netip.MustParseAddrPort("[::]:0")}
	if flags&maps.FlowSNAT != 0 {
		e.SNAT = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 61000)
	}
	f := maps.NewFlow(e, protocol, flags, used)
	if len(said) == 2 {
		f.ClientSaid, f.BackendSaid = said[0], said[1]
	}
	return f
}

const (
	confirmed = maps.FlowConfirmed
	fin, rst  = maps.SaidFIN, maps.SaidRST
)

// put writes a flow's entries: all, or those with the given key numbers.
func (r *expiryRig) put(f maps.Flow, which ...int) {
	r.t.Helper()
	for i, k := range f.Keys() {
		if len(which) == 0 || slices.Contains(which, i) {
			if err := r.flows.Put(k, f); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

// has returns the entries that a flow has in the map, by the number of their key.
func (r *expiryRig) has(f maps.Flow) map[int]maps.Flow {
	r.t.Helper()
	there := map[int]maps.Flow{}
	for i, k := range f.Keys() {
		var v maps.Flow
		if r.flows.Lookup(k, &v) == nil {
			there[i] = v
		}
	}
	return there
}

func (r *expiryRig) count() int {
	r.t.Helper()
	n := 0
	if err := maps.EachEntry(r.flows, func(*maps.FlowKey, *maps.Flow) error { n++; return nil }); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// states are the states with a timeout of their own: flags, and what client and backend have
// said.
var states = []struct {
	what     string
	protocol uint8
	flows    [][3]uint8
	expire   func(*Timeouts)
}{
	{"TCP, new", 6, [][3]uint8{{}, {maps.FlowSNAT}}, func(t *Timeouts) { t.TCPNew = always }},
	{"TCP, established", 6, [][3]uint8{{confirmed}, {confirmed | maps.FlowSNAT}}, func(t *Timeouts) { t.TCPEstablished = always }},
	{"TCP, half closed", 6, [][3]uint8{{confirmed, fin}, {confirmed, 0, fin}, {0, fin}}, func(t *Timeouts) { t.TCPCloseWait = always }},
	{"TCP, closed", 6, [][3]uint8{{confirmed, fin | maps.SaidFINLater, fin}, {confirmed, rst}, {confirmed | maps.FlowSNAT, fin, rst}, {0, rst}},
		func(t *Timeouts) { t.TCPClosed = always }},
	{"UDP, new", 17, [][3]uint8{{}, {maps.FlowSNAT}}, func(t *Timeouts) { t.UDPNew = always }},
	{"UDP, established", 17, [][3]uint8{{confirmed}, {confirmed | maps.FlowSNAT}}, func(t *Timeouts) { t.UDPEstablished = always }},
}

// Every state has its own timeout: if only that one has passed, only flows in that state are
// removed, with all of their entries. Flows in use stay in every state.
func TestExpiryStates(t *testing.T) {
	for _, expiring := range states {
		t.Run(expiring.what, func(t *testing.T) {
			timeouts := allNever
			expiring.expire(&timeouts)
			inWays(t, expiryWays[:2], 256, timeouts, func(r *expiryRig) {
				first := expiring.flows[0] // used in the future, by another CPU's clock
				ahead := flowOf(99, expiring.protocol, first[0], monotonic()+uint64(time.Hour), first[1:]...)
				r.put(ahead)
				gone, entries, i := 0, 0, 0
				for _, s := range states {
					for _, c := range s.flows {
						f := flowOf(i, s.protocol, c[0], longAgo, c[1:]...)
						r.put(f)
						i++
						entries += len(f.Keys())
					}
				}
				r.mustPass()
				i = 0
				for _, s := range states {
					for _, c := range s.flows {
						f := flowOf(i, s.protocol, c[0], longAgo, c[1:]...)
						i++
						want := len(f.Keys())
						if s.what == expiring.what {
							entries -= want
							gone++
							want = 0
						}
						if got := len(r.has(f)); got != want {
							t.Errorf("%s, %v: %d entries, want %d", s.what, c, got, want)
						}
					}
				}
				want := maps.FlowStats{Expired: uint64(gone), Fill: maps.Fill{Map: "flows", Flag: maps.FlagFlows, Size: 256,
					Used: uint32(entries + len(ahead.Keys()))}}
				if got := r.FlowStats(); got != want {
					t.Errorf("%+v, want %+v", got, want)
				}
			})
		})
	}
}

// The rules in C and in Go find the same of random flows.
func TestExpiryRuleInGo(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, expiring := range states {
		timeouts := allNever
		expiring.expire(&timeouts)
		inWays(t, expiryWays[:1], 4096, timeouts, func(r *expiryRig) {
			for i := range 500 {
				f := flowOf(i, []uint8{6, 17, 132}[rnd.IntN(3)], uint8(rnd.UintN(8)), uint64(rnd.IntN(1e9)), uint8(rnd.UintN(128)), uint8(rnd.UintN(128)))
				r.put(f)
			}
			find := func(each func(func(*flowRecord) bool) (int, error)) (int, map[flowRecord]bool) {
				found := map[flowRecord]bool{}
				n, err := each(func(rec *flowRecord) bool { found[*rec] = true; return true })
				if err != nil {
					t.Fatal(err)
				}
				return n, found
			}
			n, byKernel := find(r.iter.each)
			m, byGo := find(func(visit func(*flowRecord) bool) (int, error) { return eachExpired(r.flows, &r.timeouts, visit) })
			if n != m || n != r.count() {
				t.Errorf("the iterator counts %d entries, Go %d, there are %d", n, m, r.count())
			}
			if len(byKernel) == 0 || fmt.Sprint(len(byKernel)) != fmt.Sprint(len(byGo)) {
				t.Errorf("%s: the kernel finds %d, Go %d", expiring.what, len(byKernel), len(byGo))
			}
			for rec := range byGo {
				if !byKernel[rec] {
					t.Errorf("%s: the kernel does not find %s, %+v", expiring.what, rec.key, rec.flow)
				}
			}
		})
	}
}

// A flow with one entry in use stays, whichever entry that is: the others are refreshed. A flow
// that has lost an entry is removed by its other ones.
func TestExpiryLooksAtAllEntries(t *testing.T) {
	timeouts := allNever
	timeouts.TCPClosed = always
	eachWay(t, 64, timeouts, func(r *expiryRig) {
		now := monotonic() + uint64(time.Hour)
		for fresh := range 3 {
			f := flowOf(fresh, 6, confirmed|maps.FlowSNAT, longAgo, fin, fin)
			r.put(f)
			f.Used = now
			r.put(f, fresh)
		}
		lost := flowOf(3, 6, confirmed|maps.FlowSNAT, longAgo, rst, 0)
		r.put(lost, 2)
		// The latest entry decides about what was said: a reset that was not accepted, and an
		// end.
		goesOn := flowOf(4, 6, confirmed, longAgo+1)
		r.put(flowOf(4, 6, confirmed, longAgo, 0, rst), 0)
		r.put(goesOn, 1)
		r.put(flowOf(5, 6, confirmed, longAgo), 0)
		r.put(flowOf(5, 6, confirmed, longAgo+1, fin, fin), 1)
		r.mustPass()
		for fresh := range 3 {
			f := flowOf(fresh, 6, confirmed|maps.FlowSNAT, now, fin, fin)
			if got := r.has(f); len(got) != 3 || got[0] != f || got[1] != f || got[2] != f {
				t.Errorf("with entry %d fresh there are %+v", fresh, got)
			}
		}
		if got := r.has(lost); len(got) != 0 {
			t.Errorf("of the flow with lost entries there are %+v", got)
		}
		if got := r.has(goesOn); len(got) != 2 || got[0] != goesOn || got[1] != goesOn {
			t.Errorf("of the flow that goes on there are %+v", got)
		}
		if got := r.has(flowOf(5, 6, confirmed, 0)); len(got) != 0 {
			t.Errorf("of the flow that has ended there are %+v", got)
		}
		if s := r.FlowStats(); s.Expired != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// If one step can't remove all expired flows, the scan takes several.
func TestExpirySteps(t *testing.T) {
	timeouts := allNever
	timeouts.UDPEstablished = always
	eachWay(t, 1000, timeouts, func(r *expiryRig) {
		const flows = 300
		r.most = 100
		for i := range flows {
			r.put(flowOf(i, 17, confirmed, longAgo))
		}
		r.put(flowOf(flows, 6, confirmed, longAgo))
		if count, removed, err := r.step(); err != nil || count != -1 || removed > 2*r.most || removed == 0 {
			t.Errorf("the first step removed %d, count %d, %v", removed, count, err)
		}
		r.mustPass()
		want := maps.FlowStats{Expired: flows, Fill: maps.Fill{Map: "flows", Flag: maps.FlagFlows, Used: 2, Size: 1000}}
		if got := r.FlowStats(); got != want || r.count() != 2 {
			t.Errorf("%+v, want %+v; %d entries", got, want, r.count())
		}
	})
}

// Run removes the flows that have expired when it begins, and ends with its context.
func TestExpiryRun(t *testing.T) {
	timeouts := allNever
	timeouts.UDPEstablished = always
	eachWay(t, 64, timeouts, func(r *expiryRig) {
		r.put(flowOf(1, 17, confirmed, longAgo))
		r.close()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		for r.FlowStats().Expired == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if r.count() != 0 {
			t.Errorf("%d entries", r.count())
		}
		if warned := r.log.FilterLevelExact(zap.WarnLevel); warned.Len() != 0 {
			t.Errorf("%v", warned.All())
		}
		if err := r.open(); err != nil { // the rig closes it
			t.Error(err)
		}
	})
}

// Timeouts that are not set have the defaults of config.h.
func TestTimeouts(t *testing.T) {
	all, err := Timeouts{TCPCloseWait: time.Minute, UDPNew: 3 * time.Second}.effective()
	if err != nil {
		t.Fatal(err)
	}
	ns := func(d time.Duration) uint64 { return uint64(d) }
	want := flowTimeouts{TcpNew: ns(time.Minute), TcpEstablished: ns(24 * time.Hour), TcpCloseWait: ns(time.Minute), TcpClosed: ns(10 * time.Second),
		UdpNew: ns(3 * time.Second), UdpEstablished: ns(2 * time.Minute)}
	if all != want {
		t.Errorf("%+v, want %+v", all, want)
	}
}

// BenchmarkExpiryScan scans maps of the default size without expired entries.
func BenchmarkExpiryScan(b *testing.B) {
	for _, entries := range []int{0, 10000, 64000, 128000, 400000} {
		for _, iter := range []bool{true, false} {
			b.Run(fmt.Sprintf("entries=%d/iterator=%t", entries, iter), func(b *testing.B) {
				spec, err := maps.Spec(maps.DefaultSizes())
				if err != nil {
					b.Fatal(err)
				}
				m, err := ebpf.NewMap(spec["flows"])
				if err != nil {
					b.Skip(err)
				}
				defer m.Close()
				for i := range entries / 2 {
					f := flowOf(i, 6, confirmed, monotonic())
					for _, k := range f.Keys() {
						if err := m.Put(k, f); err != nil {
							b.Fatal(err)
						}
					}
				}
				e := &Expiry{o: ExpiryOptions{Log: zap.NewNop()}, flows: m, size: m.MaxEntries(), most: expiryStep}
				if err := e.open(); err != nil {
					b.Fatal(err)
				}
				defer e.close()
				if !iter {
					e.close()
					e.iter = nil
				}
				for b.Loop() {
					if _, err := e.pass(b.Context()); err != nil || int(e.used.Load()) != entries {
						b.Fatal(err, e.used.Load())
					}
				}
			})
		}
	}
}
