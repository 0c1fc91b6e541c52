// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// changeMeta changes the element of the pinned map meta, as programs do.
func changeMeta(t *testing.T, root string, change func(*maps.Meta)) {
	t.Helper()
	set, err := maps.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	var m maps.Meta
	err = set.Map("meta").Lookup(uint32(0), &m)
	change(&m)
	if err = errors.Join(err, set.Map("meta").Put(uint32(0), &m)); err != nil {
		t.Fatal(err)
	}
}

// A daemon that starts writes all of its own fields, and none of the others.
func TestUpdateMeta(t *testing.T) {
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, small)
	written := maps.Meta{Abi: 1, Pid: 2, Started: 3, Synced: 4, Pending: 5, ServiceCidrs: 6, Problems: 7, ProblemsVersion: 8, Direct: 9, DirectNoted: 10, LocalPortNoted: 11}
	changeMeta(t, root, func(m *maps.Meta) { *m = written })
	k.UpdateMeta(func(m *maps.DaemonMeta) {
		if want := (maps.DaemonMeta{Abi: 1, Pid: 2, Started: 3, Synced: 4, Pending: 5}); *m != want {
			t.Errorf("the daemon's part is %+v, want %+v", *m, want)
		}
		*m = maps.DaemonMeta{Abi: 10, Pid: 11, Started: 12}
	})
	written.Abi, written.Pid, written.Started, written.Synced, written.Pending = 10, 11, 12, 0, 0
	if got := k.Meta(); got != written {
		t.Errorf("meta is %+v, want %+v", got, written)
	}
}

// The older set's programs make direct flows in flows_new and entries in directs and local_ports,
// which both sets share. They note the time in their own map meta. The new set's programs must
// look for such flows and entries, at whichever step a daemon was killed.
func TestReplacedMapsMayHaveNotes(t *testing.T) {
	for until := range killedAt {
		t.Run(fmt.Sprint("killed at ", until), func(t *testing.T) {
			root := mapstest.BPFFS(t)
			first, _ := mapstest.Open(t, root, sized(32))
			fill(t, first, embeddedABI(t))
			if first.Meta().Direct != 0 {
				t.Fatal("maps that replace none expect a direct flow")
			}
			before := monotonic(t)
			_ = replaceMaps(t, root, sized(64), until)
			set, _ := open(t, root, sized(64))
			if err := set.Switch(); err != nil {
				t.Fatal(err)
			}
			var m maps.Meta
			if err := set.Map("meta").Lookup(uint32(0), &m); err != nil {
				t.Fatal(err)
			}
			if m.Direct < before || m.DirectNoted < before || m.LocalPortNoted < before {
				t.Errorf("meta is %+v: a time is before that of the switch, which was at %d or later", m, before)
			}
		})
	}
}

func monotonic(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(time.Duration(ts.Nano()))
}
