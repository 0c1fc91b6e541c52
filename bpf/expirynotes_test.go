// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// noteTimeouts are timeouts that differ, so that a wrong one is seen.
var noteTimeouts = Timeouts{TCPNew: 10 * time.Second, TCPEstablished: 40 * time.Second, TCPCloseWait: 40 * time.Second,
	TCPClosed: 10 * time.Second, UDPNew: 10 * time.Second, UDPEstablished: 20 * time.Second}

// eachNoteWay runs a test with both methods of deletion that kernels have.
func eachNoteWay(t *testing.T, test func(r *expiryRig)) {
	inWays(t, []expiryWay{expiryWays[0], expiryWays[2]}, 1024, noteTimeouts, func(r *expiryRig) {
		r.newFlows.takes = r.table.takes
		test(r)
	})
}

// noted has one entry of each map of notes, by the map's name.
type noted map[string]struct{ key, value any }

// newNoted returns entries that were noted so long ago.
func newNoted(tcp, udp, local, fragment time.Duration) noted {
	at := func(age time.Duration) uint64 { return monotonic() - uint64(age) }
	flow := flowOf(1, unix.IPPROTO_TCP, 0, at(tcp))
	direct := flow.Keys()[0]
	datagram := direct
	datagram.Protocol = unix.IPPROTO_UDP
	return noted{
		"direct TCP":        {direct, at(tcp)},
		"direct UDP":        {datagram, at(udp)},
		maps.NameLocalPorts: {maps.LocalPortKey{Own: 1, Other: 2}, at(local)},
		maps.NameFragments:  {maps.FragmentKey{Id: 1}, maps.Fragment{Protocol: 17, Noted: at(fragment)}},
	}
}

// tableOf returns the map of an entry.
func (r *expiryRig) tableOf(name string) *ebpf.Map {
	if name == "direct TCP" || name == "direct UDP" {
		name = maps.NameDirects
	}
	return r.o.Set.Map(name)
}

// putNotes writes the entries.
func (r *expiryRig) putNotes(all noted) {
	r.t.Helper()
	for name, e := range all {
		if err := r.tableOf(name).Put(e.key, e.value); err != nil {
			r.t.Fatal(name, err)
		}
	}
}

// wantNotes checks which of the entries are there.
func (r *expiryRig) wantNotes(what string, all noted, want bool) {
	r.t.Helper()
	for name, e := range all {
		value, err := r.tableOf(name).LookupBytes(e.key)
		if there := value != nil; err != nil || there != want {
			r.t.Errorf("%s: %s is there: %t, want %t (%v)", what, name, there, want, err)
		}
	}
}

// TestNotesEnd checks that each kind of note goes at its own age, and not before.
func TestNotesEnd(t *testing.T) {
	eachNoteWay(t, func(r *expiryRig) {
		const before, after = -time.Second, time.Second
		for _, test := range []struct {
			what string
			by   time.Duration
			want bool
		}{{"a second before its age", before, true}, {"a second after", after, false}} {
			all := newNoted(40*time.Second+test.by, 20*time.Second+test.by, 120*time.Second+test.by, 31*time.Second+test.by)
			r.putNotes(all)
			if err := r.removeNotes(); err != nil {
				t.Fatal(err)
			}
			r.wantNotes(test.what, all, test.want)
		}
	})
}

// TestNoteIsMadeAgain checks that an entry stays which a program notes between the scan's read
// and its deletion.
func TestNoteIsMadeAgain(t *testing.T) {
	eachNoteWay(t, func(r *expiryRig) {
		long := 200 * time.Second
		all, again := newNoted(long, long, long, long), newNoted(0, 0, 0, 0)
		r.putNotes(all)
		r.newFlows.before = func(maps.FlowKey) { r.putNotes(again) }
		if err := r.removeNotes(); err != nil {
			t.Fatal(err)
		}
		r.wantNotes("noted again", again, true)
	})
}

// TestNewFlowsEnd checks that expired flows of flows_new go, and others stay: also one of which
// only an entry is old, and one that is used while the scan removes it.
func TestNewFlowsEnd(t *testing.T) {
	eachNoteWay(t, func(r *expiryRig) {
		r.flows = r.o.Set.Map(maps.NameFlowsNew) // for put and has
		now, ago := monotonic(), func(d time.Duration) uint64 { return monotonic() - uint64(d) }
		old := flowOf(1, unix.IPPROTO_TCP, maps.FlowSNAT, ago(11*time.Second))
		local := flowOf(2, unix.IPPROTO_UDP, maps.FlowLocal, ago(11*time.Second))
		young := flowOf(3, unix.IPPROTO_UDP, maps.FlowSNAT, ago(9*time.Second))
		partly, partlyNow := flowOf(4, unix.IPPROTO_UDP, maps.FlowSNAT, ago(11*time.Second)), flowOf(4, unix.IPPROTO_UDP, maps.FlowSNAT, now)
		used, usedNow := flowOf(5, unix.IPPROTO_UDP, 0, ago(11*time.Second)), flowOf(5, unix.IPPROTO_UDP, 0, now)
		for _, f := range []maps.Flow{old, local, young, partly, used} {
			r.put(f)
		}
		r.put(partlyNow, 1)
		last := used.Keys()[1]
		r.newFlows.before = func(k maps.FlowKey) {
			if k == last {
				r.put(usedNow, 1)
			}
		}
		if err := r.removeNotes(); err != nil {
			t.Fatal(err)
		}
		for what, c := range map[string]struct {
			f    maps.Flow
			want int
		}{"expired": {old, 0}, "local, expired": {local, 0}, "in use": {young, 3}, "with an old entry": {partly, 3}, "used meanwhile": {used, 2}} {
			if got := len(r.has(c.f)); got != c.want {
				t.Errorf("%s: %d entries are left, want %d", what, got, c.want)
			}
		}
		if s := r.FlowStats(); s.Expired != 0 {
			t.Errorf("%d expired flows are counted", s.Expired)
		}
	})
}
