// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// DaemonMeta has the fields of map meta that the daemon writes. The others have other writers:
// service_cidrs and problems are written together with their maps, and programs write direct,
// direct_noted and local_port_noted. A daemon that starts must not change those.
type DaemonMeta struct {
	// Abi is SHUNT_ABI, Pid the daemon's process id in its own pid namespace.
	Abi, Pid uint32
	// Started and Synced are Unix times in ns. Synced is the time of the last reconcile that
	// left nothing to do; 0 before the first.
	Started, Synced int64
	// Pending counts Services whose change is not in the maps.
	Pending uint32
}

// UpdateMeta changes the daemon's fields of map meta. It must be called from one goroutine at a
// time.
func (k *Kernel) UpdateMeta(change func(*DaemonMeta)) {
	m := &k.meta[0]
	d := DaemonMeta{Abi: m.Abi, Pid: m.Pid, Started: m.Started, Synced: m.Synced, Pending: m.Pending}
	change(&d)
	m.Pid, m.Started, m.Synced, m.Pending = d.Pid, d.Started, d.Synced, d.Pending
	atomic.StoreUint32(&m.Abi, d.Abi) // last: a reader ignores all fields while it is 0
}

// Meta returns the element of map meta.
func (k *Kernel) Meta() Meta { return k.meta[0] }

// expectNotes sets the times in map meta by which programs decide whether to search map flows_new
// for an unconfirmed direct TCP flow, and maps directs and local_ports for new entries. A set
// that replaces another shares these three maps, but has a map meta of its own. The times that
// the older set's programs wrote are missing there.
func (s *Set) expectNotes() (err error) {
	if len(oldDirs(filepath.Dir(s.dir))) == 0 {
		return nil
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the clock that programs use: %w", err)
	}
	var meta []Meta
	if err := mapArray(s.maps[mapMeta], &meta); err != nil {
		return err
	}
	for _, at := range []*uint64{&meta[0].Direct, &meta[0].DirectNoted, &meta[0].LocalPortNoted} {
		atomic.StoreUint64(at, uint64(now.Nano()))
	}
	return unmapArray(&meta)
}
