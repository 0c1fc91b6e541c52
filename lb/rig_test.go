// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	"shunt/maps"
)

// rig is a loop that a test drives one reconcile at a time, with its own clock.
type rig struct {
	t      testing.TB
	clock  *testClock
	store  *Store
	loop   *Loop
	tables maps.Tables
	heard  *recorder
	// share replaces the share that follows from the sizes of the maps; nil: it does not.
	share *room
}

// recorder is an Observer that keeps what it is called with.
type recorder struct {
	mu       sync.Mutex
	reports  []Report
	checks   [][]HealthCheck
	stale    []Stale
	problems []Problem
}

func (r *recorder) Reconciled(rep Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports = append(r.reports, rep)
}

func (r *recorder) SetHealthChecks(c []HealthCheck) { r.checks = append(r.checks, c) }

func (r *recorder) all() []Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.reports)
}

func (r *recorder) last() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reports[len(r.reports)-1]
}

// newRig returns a rig for node "me", whose store is synced.
func newRig(t testing.TB, tables maps.Tables, clock *testClock) *rig {
	t.Helper()
	r := &rig{t: t, clock: clock, tables: tables, store: NewStore(clock.now)}
	r.start()
	r.store.SetSynced()
	return r
}

// start makes another loop on the same store and maps, like a new daemon.
func (r *rig) start() Adopted {
	r.t.Helper()
	r.heard = &recorder{}
	r.loop = NewLoop(LoopOptions{
		Store: r.store, Tables: r.tables, Log: zap.NewNop(), Now: r.clock.now, NodeName: "me",
		Observer: r.heard, OnStale: func(s Stale) { r.heard.stale = append(r.heard.stale, s) },
		OnProblem: func(p Problem) { r.heard.problems = append(r.heard.problems, p) },
	})
	if r.share != nil {
		r.loop.r.ledger.share = *r.share
	}
	adopted, err := r.loop.Adopt()
	if err != nil {
		r.t.Fatal(err)
	}
	return adopted
}

// step reconciles once: everything that changed and every failure, whether due or not. It returns
// the report.
func (r *rig) step() Report {
	r.loop.step(r.clock.now().Add(2*retryMax), math.MaxInt)
	return r.heard.last()
}

// mustStep reconciles once, and fails the test on an error.
func (r *rig) mustStep() Report {
	r.t.Helper()
	rep := r.step()
	if rep.Err != nil {
		r.t.Fatal(rep.Err)
	}
	return rep
}

// settle reconciles until no failure is left.
func (r *rig) settle() {
	r.t.Helper()
	for range 50 {
		err := r.step().Err
		if r.loop.failed.empty() {
			return
		}
		if err == nil {
			r.t.Fatal("something is pending, but nothing failed")
		}
		r.clock.advance(grace)
	}
	r.t.Fatalf("not settled after many retries: %v", r.heard.last().Err)
}

func (r *rig) dump() *maps.Dump {
	r.t.Helper()
	d, err := r.tables.Dump()
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// copyTo sets the objects of the store in another store.
func (s *Store) copyTo(to *Store) {
	for _, svc := range s.services {
		to.SetService(svc)
	}
	for _, sls := range s.slices {
		for _, sl := range sls {
			to.SetSlice(sl)
		}
	}
	if s.reserved != nil {
		to.SetReserved(*s.reserved)
	}
	to.SetNode(s.node)
	if s.addrs != nil {
		to.SetNodeAddrs(s.addrs)
	}
	if s.cidrs != nil {
		to.SetServiceCIDRs(s.cidrs)
	}
}

// fresh returns a rig that has programmed the same objects at once, without faults, into maps of
// the same sizes.
func (r *rig) fresh() *rig {
	r.t.Helper()
	f := newRig(r.t, maps.NewFake(r.tables.Sizes()), newTestClock())
	f.loop.o.MaxFrontends, f.loop.r.ledger.share = r.loop.o.MaxFrontends, r.loop.r.ledger.share
	r.store.copyTo(f.store)
	f.step()
	return f
}

// used is what the loop counts as in use.
type used struct {
	services, records, slots uint32
	entries, names, sources  int
	noLocal                  [4]int
}

func (r *rig) used() used {
	rec := r.loop.r
	d := r.dump()
	kept := len(d.Backends) - len(d.Lasting().Backends)
	return used{rec.services.used, rec.records.used - uint32(kept), rec.slots.used, rec.entries, len(d.Names), rec.sources, [4]int{
		rec.noLocal[NoLocalKey{IPv4, false}], rec.noLocal[NoLocalKey{IPv4, true}],
		rec.noLocal[NoLocalKey{IPv6, false}], rec.noLocal[NoLocalKey{IPv6, true}],
	}}
}

// sameAs fails unless both rigs have the same contents of maps and the same counts of use.
func (r *rig) sameAs(f *rig, what string) {
	r.t.Helper()
	if got, want := r.dump().Lasting().Text(), f.dump().Lasting().Text(); got != want {
		r.t.Fatalf("%s: the maps hold\n%s\na fresh loop makes\n%s", what, got, want)
	}
	if got, want := r.used(), f.used(); got != want {
		r.t.Fatalf("%s: in use are %+v, of a fresh loop %+v", what, got, want)
	}
}

// errFault is the error of injected faults.
var errFault = errors.New("injected fault")

// nodeAddrs are the addresses of a node with both families.
var nodeAddrs = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"),
	netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("fd00:1::1")}

// newGuardedRig returns a rig on a guarded fake with enough room.
func newGuardedRig(t testing.TB) *rig {
	t.Helper()
	clock := newTestClock()
	return newRig(t, newGuard(t, maps.NewFake(roomy), clock), clock)
}

// leads returns the backends that clients inside get from a TCP frontend, sorted.
func (r *rig) leads(frontend string) string {
	r.t.Helper()
	d := r.dump()
	v, there := d.Frontends[fe(frontend, TCP)]
	if !there {
		return "no frontend"
	}
	ids, err := d.Range(v.Inside)
	if err != nil {
		r.t.Fatal(err)
	}
	var to []string
	for _, id := range ids {
		to = append(to, d.Backends[id].AddrPort().String())
	}
	slices.Sort(to)
	return strings.Join(to, ",")
}
