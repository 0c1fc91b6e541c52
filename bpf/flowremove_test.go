// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"
	"time"

	"shunt/maps"
)

// An entry of another flow under a flow's key is not touched.
func TestExpiryLeavesOtherFlows(t *testing.T) {
	timeouts := allNever
	timeouts.TCPEstablished = always
	eachWay(t, 64, timeouts, func(r *expiryRig) {
		old := flowOf(1, 6, confirmed|maps.FlowSNAT, longAgo)
		r.put(old, 0, 1)
		other := flowOf(2, 6, confirmed|maps.FlowSNAT, monotonic()+uint64(time.Hour))
		if err := r.flows.Put(old.Keys()[2], other); err != nil { // another flow has the SNAT port by now
			t.Fatal(err)
		}
		r.mustPass()
		if got := r.has(old); len(got) != 1 || got[2] != other {
			t.Errorf("there are %+v", got)
		}
	})
}

// A flow that is used between the read and the deletion of any of its entries stays, with all
// of them.
func TestExpiryUsedInBetween(t *testing.T) {
	timeouts := allNever
	timeouts.TCPEstablished = always
	const keys = 3
	eachWay(t, 64, timeouts, func(r *expiryRig) {
		for n := range keys * keys {
			moment, usedKey := n/keys, n%keys
			f := flowOf(n, 6, confirmed|maps.FlowSNAT, longAgo)
			r.put(f)
			used := f
			used.Used = monotonic() + uint64(time.Hour)
			deletions := 0
			r.table.before = func(maps.FlowKey) {
				if deletions == moment {
					// A program refreshes the entries that it finds, and not those that are
					// deleted.
					usedKey = max(usedKey, moment)
					r.put(used, usedKey)
				}
				deletions++
			}
			r.mustPass()
			for i, got := range r.has(f) {
				if i <= usedKey && got != used {
					t.Errorf("used through entry %d before deletion %d: entry %d is %+v", usedKey, moment, i, got)
				}
			}
			if got := len(r.has(f)); got != keys {
				t.Errorf("used through entry %d before deletion %d: %d entries are left", usedKey, moment, got)
			}
			r.table.before = nil
			r.mustPass() // it refreshes the other entries
			for i, v := range r.has(f) {
				if v != used {
					t.Errorf("after another pass entry %d is %+v", i, v)
				}
			}
		}
		if s := r.FlowStats(); s.Expired != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A flow that is made anew while its entries are deleted stays as the programs made it, also if
// it is another connection.
func TestExpiryReplacedInBetween(t *testing.T) {
	timeouts := allNever
	timeouts.TCPEstablished = always
	eachWay(t, 64, timeouts, func(r *expiryRig) {
		f := flowOf(1, 6, confirmed|maps.FlowSNAT, longAgo)
		r.put(f)
		other := flowOf(2, 6, confirmed|maps.FlowSNAT, monotonic()+uint64(time.Hour))
		r.table.before = func(k maps.FlowKey) {
			if k == f.Keys()[2] {
				if err := r.flows.Put(k, other); err != nil {
					t.Error(err)
				}
			}
		}
		r.mustPass()
		if got := r.has(f); len(got) != 1 || got[2] != other {
			t.Errorf("there are %+v", got)
		}
	})
}

// fillUp adds flows in a state until the map has so many entries. Each flow is used a little
// later than the one before.
func (r *expiryRig) fillUp(from, entries int, said uint8) (next int) {
	for n := r.count(); n < entries; n += 2 {
		r.put(flowOf(from, 6, confirmed, 1000+uint64(from), said, said))
		from++
	}
	return from
}

// Under pressure closed flows are removed, and no others if that is enough. If not, the least
// recently used are evicted, until a fifth of the map is free.
func TestExpiryPressure(t *testing.T) {
	eachWay(t, 1000, allNever, func(r *expiryRig) {
		r.fillUp(0, 900, 0)
		if !r.mustPass() || r.count() != 900 {
			t.Fatalf("at 90 %% there are %d entries left", r.count())
		}
		first := r.fillUp(450, 960, rst)
		if !r.mustPass() {
			t.Error("not enough room was made")
		}
		if s := r.FlowStats(); s.Expired != uint64(first-450) || s.Evicted != 50 || r.count() != 800 || s.Fill.Used != 800 {
			t.Fatalf("%+v, %d entries", s, r.count())
		}
		for i := range 450 {
			if got, want := len(r.has(flowOf(i, 6, confirmed, 1))), 2; (i < 50) != (got == 0) || i >= 50 && got != want {
				t.Fatalf("flow %d, of which 0 is the oldest, has %d entries", i, got)
			}
		}
		if !r.mustPass() {
			t.Error("not enough room at 80 %")
		}
		if warned := r.log.FilterMessageSnippet("map flows is nearly full").Len(); warned != 1 {
			t.Errorf("%d warnings: %v", warned, r.log.All())
		}
		r.fillUp(2000, 1000, 0)
		r.mustPass()
		if s := r.FlowStats(); s.Evicted != 150 || r.count() != 800 {
			t.Errorf("%+v, %d entries", s, r.count())
		}
		r.fillUp(3000, 920, rst)
		r.mustPass()
		if s := r.FlowStats(); s.Evicted != 150 || s.Expired != uint64(first-450)+60 || r.count() != 800 {
			t.Errorf("where those that ended are enough: %+v, %d entries", s, r.count())
		}
	})
}

// Under pressure UDP flows are evicted before TCP ones, however long those are idle: a flood of
// datagrams evicts no connection.
func TestExpiryPressureUDPFirst(t *testing.T) {
	eachWay(t, 1000, allNever, func(r *expiryRig) {
		idle := r.fillUp(0, 700, 0)
		for i := range 120 {
			r.put(flowOf(10000+i, 17, confirmed, 1_000_000+uint64(i)))
		}
		if !r.mustPass() {
			t.Error("not enough room was made")
		}
		if s := r.FlowStats(); s.Evicted != 70 || r.count() != 800 {
			t.Errorf("%+v, %d entries", s, r.count())
		}
		for i := range idle {
			if len(r.has(flowOf(i, 6, confirmed, 1))) != 2 {
				t.Fatalf("connection %d of %d had to go", i, idle)
			}
		}
		for i := range 120 { // the least recently used
			if got := len(r.has(flowOf(10000+i, 17, confirmed, 1))); (i < 70) != (got == 0) {
				t.Fatalf("UDP flow %d has %d entries", i, got)
			}
		}
		// If these are not enough, TCP flows follow.
		r.fillUp(20000, 960, 0)
		r.mustPass()
		if r.count() != 800 || len(r.has(flowOf(0, 6, confirmed, 1))) != 0 {
			t.Errorf("%d entries, of the oldest connection %d", r.count(), len(r.has(flowOf(0, 6, confirmed, 1))))
		}
	})
}

// A refresh of an expired entry does not undo what a packet has written to it meanwhile.
func TestExpiryRefreshInBetween(t *testing.T) {
	timeouts := allNever
	timeouts.TCPCloseWait = always
	eachWay(t, 64, timeouts, func(r *expiryRig) {
		now := monotonic() + uint64(time.Hour)
		r.put(flowOf(1, 6, confirmed, longAgo, fin, 0), 0)
		r.put(flowOf(1, 6, confirmed, now, fin, 0), 1)
		noted := flowOf(1, 6, confirmed, now, fin, fin)
		r.table.before = func(maps.FlowKey) { r.put(noted, 0) }
		r.mustPass()
		r.table.before = nil
		if got := r.has(noted); len(got) != 2 || got[0] != noted {
			t.Errorf("there are %+v, want entry 0 as %+v", got, noted)
		}
	})
}

// A step removes a limited number of entries. The next scan, which follows soon, removes
// others.
func TestExpiryPressureInSteps(t *testing.T) {
	eachWay(t, 1000, allNever, func(r *expiryRig) {
		r.most = 30
		r.fillUp(0, 1000, 0)
		for pass, want := range []int{940, 880, 820, 800} {
			if enough := r.mustPass(); enough != (want == 800) || r.count() != want {
				t.Errorf("after pass %d: enough room is %t, with %d entries, want %d", pass, enough, r.count(), want)
			}
		}
		for i := range 500 {
			if got := len(r.has(flowOf(i, 6, confirmed, 1))); (i < 100) != (got == 0) {
				t.Errorf("flow %d, of which 0 is the oldest, has %d entries", i, got)
			}
		}
	})
}

// A flow that is used while the map is relieved stays.
func TestExpiryPressureUsedInBetween(t *testing.T) {
	eachWay(t, 100, allNever, func(r *expiryRig) {
		r.fillUp(0, 96, 0)
		oldest := flowOf(0, 6, confirmed, monotonic())
		once := false
		r.table.before = func(maps.FlowKey) {
			if !once {
				r.put(oldest)
				once = true
			}
		}
		r.mustPass()
		if got := r.has(oldest); len(got) != 2 || got[0] != oldest || got[1] != oldest {
			t.Errorf("the flow that was used has %+v", got)
		}
		if s := r.FlowStats(); s.Evicted == 0 || int(s.Fill.Used) != r.count() {
			t.Errorf("%+v, %d entries", s, r.count())
		}
	})
}
