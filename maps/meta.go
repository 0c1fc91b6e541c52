// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// DaemonMeta is the daemon's part of map meta. The other fields have other writers:
// service_cidrs and problems follow the maps that they are about, and programs write
// direct, direct_noted and own_port_noted. A daemon that starts must keep those.
type DaemonMeta struct {
	// Abi is SHUNT_ABI, Pid the daemon's process id in its own pid namespace.
	Abi, Pid uint32
	// Started and Synced are Unix times in ns. Synced is 0 before the first reconcile
	// that left nothing.
	Started, Synced int64
	// Pending counts Services whose change is not in the maps.
	Pending uint32
}

// UpdateMeta changes the daemon's part of map meta. It must be called from one
// goroutine at a time.
func (k *Kernel) UpdateMeta(change func(*DaemonMeta)) {
	m := &k.meta[0]
	d := DaemonMeta{Abi: m.Abi, Pid: m.Pid, Started: m.Started, Synced: m.Synced, Pending: m.Pending}
	change(&d)
	m.Pid, m.Started, m.Synced, m.Pending = d.Pid, d.Started, d.Synced, d.Pending
	atomic.StoreUint32(&m.Abi, d.Abi) // last: with 0, a reader takes none of it
}

// Meta returns the element of map meta.
func (k *Kernel) Meta() Meta { return k.meta[0] }

// expectNotes notes in map meta that flows_new may have a direct TCP flow that is not
// confirmed, and that directs and own_ports may have young entries. A set that replaces
// another has the same maps and an element of meta of its own, so what the older set's
// programs noted there has to be said again.
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
	for _, at := range []*uint64{&meta[0].Direct, &meta[0].DirectNoted, &meta[0].OwnPortNoted} {
		atomic.StoreUint64(at, uint64(now.Nano()))
	}
	return unmapArray(&meta)
}
