// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// Expiry removes flows of the packet path from map flows: the expired ones, and when the map is
// nearly full also the closed ones. If that does not suffice, it evicts the least recently used
// flows, UDP before TCP. Every scan reads the current map, so that it also removes flows that an
// earlier scan missed. Expiry also removes expired entries of the maps of notes (expirynotes.go).
type Expiry struct {
	o     ExpiryOptions
	flows *ebpf.Map
	table *flowTable
	// newFlows is map flows_new.
	newFlows *flowTable
	// timeouts are those that the programs are loaded with.
	timeouts flowTimeouts
	iter     *flowIter // nil: the kernel has no iterators over maps
	size     uint32
	// most is the largest number of flows that one step reads: expiryStep. The iterator is used
	// if the map has at least iterFrom entries. Tests set smaller values.
	most     int
	iterFrom uint32

	used             atomic.Uint32
	expired, evicted atomic.Uint64
	// pressed reports whether the last scan found the map nearly full.
	pressed bool
}

// ExpiryOptions are the options of NewExpiry.
type ExpiryOptions struct {
	// Set has the maps that the programs use. Timeouts are the ones that they are loaded with.
	Set      *maps.Set
	Timeouts Timeouts
	Log      *zap.Logger
}

const (
	// expiryPeriod is the time between two scans, expiryPressed the time after a scan that did
	// not make enough room.
	expiryPeriod  = 5 * time.Second
	expiryPressed = 500 * time.Millisecond
	// A scan has at most expirySteps steps, with a pause of expiryPause between them. A step
	// reads at most expiryStep expired entries and removes their flows: that takes 2 MB of memory
	// and some 50 ms.
	expiryStep  = 16384
	expirySteps = 64
	expiryPause = 20 * time.Millisecond
	// The kernel's iterator visits every bucket of the hash, also empty ones. A system call that
	// reads a batch of entries takes time only for the entries. Both take the same time if one
	// bucket in iterFill has an entry (BenchmarkExpiryScan).
	iterFill = 8
	// The map is under pressure from pressureHigh percent of its size until it is down to
	// pressureLow percent.
	pressureHigh, pressureLow = 90, 80
)

// NewExpiry returns an Expiry that does nothing until Run.
func NewExpiry(o ExpiryOptions) *Expiry {
	flows := o.Set.Map(maps.NameFlows)
	size := flows.MaxEntries()
	return &Expiry{o: o, flows: flows, size: size, most: expiryStep, iterFrom: size / iterFill}
}

// FlowStats returns the counters and the fill of map flows. It is safe from any goroutine.
func (e *Expiry) FlowStats() maps.FlowStats {
	return maps.FlowStats{
		Expired: e.expired.Load(), Evicted: e.evicted.Load(),
		Fill: maps.Fill{Map: maps.NameFlows, Flag: maps.FlagFlows, Used: e.used.Load(), Size: e.size},
	}
}

// Run scans until the context ends, and returns nil then. It logs a warning when a scan fails:
// the next one tries again. It returns an error when it can't read the timeouts.
func (e *Expiry) Run(ctx context.Context) error {
	if err := e.open(); err != nil {
		return err
	}
	defer e.close()
	notes := time.Now()
	for {
		enough, err := e.pass(ctx)
		if err != nil && ctx.Err() == nil {
			e.o.Log.Warn("not every flow that has ended could be removed", zap.Error(err))
		}
		if time.Since(notes) >= notesPeriod {
			if err := e.removeNotes(); err != nil {
				e.o.Log.Warn("not every expired entry of the packet path's notes could be removed", zap.Error(err))
			}
			notes = time.Now()
		}
		wait := expiryPeriod
		if !enough {
			wait = expiryPressed
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// open reads the timeouts and opens the iterator, if the kernel has one.
func (e *Expiry) open() (err error) {
	if e.timeouts, err = e.o.Timeouts.effective(); err != nil {
		return fmt.Errorf("read how long flows are remembered: %w", err)
	}
	e.table, e.newFlows = newFlowTable(e.flows), newFlowTable(e.o.Set.Map(maps.NameFlowsNew))
	if e.iter, err = openFlowIter(e.flows, e.timeouts); err != nil {
		e.o.Log.Info("every flow is read by system calls to find those that have ended", zap.Error(err))
	}
	return nil
}

func (e *Expiry) close() {
	if e.iter == nil {
		return
	}
	if err := e.iter.Close(); err != nil {
		e.o.Log.Warn("close the iterator over map flows", zap.Error(err))
	}
}

// sleep waits, and returns false if the context has ended before that.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// pass scans the whole map once, and reports whether the map has enough room.
func (e *Expiry) pass(ctx context.Context) (enough bool, err error) {
	for range expirySteps {
		count, removed, err := e.step()
		if err != nil {
			return true, err
		}
		if count >= 0 {
			e.used.Store(uint32(max(0, count-removed)))
			return e.relieve()
		}
		if !sleep(ctx, expiryPause) {
			break
		}
	}
	return true, nil
}

// step removes at most as many expired flows as one step may. count is the number of entries
// before the removal; -1 if more expired entries are left.
func (e *Expiry) step() (count, removed int, err error) {
	var found []flowRecord
	visit := func(r *flowRecord) bool {
		found = append(found, *r)
		return len(found) < e.most
	}
	if e.iter != nil && e.used.Load() >= e.iterFrom {
		count, err = e.iter.each(visit)
	} else {
		count, err = eachExpired(e.flows, &e.timeouts, visit)
	}
	if err != nil {
		return count, 0, err
	}
	removed, err = e.remove(found, &e.expired, math.MaxInt, e.isExpired)
	return count, removed, err
}

// isExpired reports whether the flow is expired now.
func (e *Expiry) isExpired(f *maps.Flow) bool { return e.timeouts.expired(f, monotonic()) }

// remove removes those of the found flows for which ended returns true, until it has removed at
// least most entries. It adds the number of removed flows to counter, and returns the number of
// removed entries.
func (e *Expiry) remove(found []flowRecord, counter *atomic.Uint64, most int, ended func(*maps.Flow) bool) (entries int, err error) {
	for i := range found {
		if entries >= most {
			break
		}
		n, err := e.table.remove(&found[i], &e.timeouts, ended)
		entries += n
		if n > 0 {
			counter.Add(1)
		}
		if err != nil {
			return entries, err
		}
	}
	return entries, nil
}

// relieve makes room if the map is under pressure, at most as much as one step may, and reports
// whether the map has enough room then.
func (e *Expiry) relieve() (enough bool, err error) {
	used, limit := uint64(e.used.Load()), uint64(pressureHigh)
	if e.pressed {
		limit = pressureLow
	}
	if used*100 <= uint64(e.size)*limit {
		e.pressed = false
		return true, nil
	}
	e.pressed = true
	most := int(used - uint64(e.size)*pressureLow/100)
	closed, oldest, err := e.candidates(most)
	if err != nil {
		return true, err
	}
	ended, err := e.remove(closed, &e.expired, math.MaxInt, isClosed)
	evicted := 0
	if err == nil {
		evicted, err = e.evict(oldest, most-ended)
	}
	used -= min(used, uint64(ended+evicted))
	e.used.Store(uint32(used))
	e.o.Log.Warn("map flows is nearly full: removed flows that had ended, then the least recently used ones",
		zap.Int("ended_entries", ended), zap.Int("evicted_entries", evicted),
		zap.Uint64("entries", used), zap.Uint32("size", e.size), zap.String("flag", maps.FlagFlows))
	return used*100 <= uint64(e.size)*pressureLow, err
}

// evict removes flows in the order of oldest, until it has removed at least most entries. It
// leaves out a flow that was used after it was read.
func (e *Expiry) evict(oldest []flowRecord, most int) (evicted int, err error) {
	firstTCP := slices.IndexFunc(oldest, func(r flowRecord) bool { return r.flow.Protocol == unix.IPPROTO_TCP })
	if firstTCP < 0 {
		firstTCP = len(oldest)
	}
	for _, part := range [][]flowRecord{oldest[:firstTCP], oldest[firstTCP:]} {
		if len(part) == 0 || evicted >= most {
			continue
		}
		cutoff := part[len(part)-1].flow.Used
		n, err := e.remove(part, &e.evicted, most-evicted, func(f *maps.Flow) bool { return f.Used <= cutoff })
		evicted += n
		if err != nil {
			return evicted, err
		}
	}
	return evicted, nil
}

// byEviction orders flows that are not closed: UDP before TCP, then the least recently used
// first. Datagrams with forged sources can fill the map, while a TCP flow requires a handshake.
// And an evicted UDP flow is created again with its next datagram, while an evicted TCP
// connection breaks.
func byEviction(a, b flowRecord) int {
	isTCP := func(r flowRecord) int {
		if r.flow.Protocol == unix.IPPROTO_TCP {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(isTCP(a), isTCP(b)), cmp.Compare(a.flow.Used, b.flow.Used))
}

// candidates returns flows to remove, to free about so many entries. Each flow is represented by
// its FlowKeyOut entry. closed has the closed flows. oldest has the first of the other flows in
// the order of byEviction, one for every two entries, sorted. Neither list has more flows than
// one step may remove.
func (e *Expiry) candidates(entries int) (closed, oldest []flowRecord, err error) {
	flows := min((entries+1)/2, e.most)
	err = maps.EachEntry(e.flows, func(k *maps.FlowKey, f *maps.Flow) error {
		switch {
		case k.Kind != maps.FlowKeyOut:
		case isClosed(f):
			if len(closed) < e.most {
				closed = append(closed, flowRecord{*k, *f})
			}
		default:
			if oldest = append(oldest, flowRecord{*k, *f}); len(oldest) >= 2*flows {
				slices.SortFunc(oldest, byEviction)
				oldest = oldest[:flows]
			}
		}
		return nil
	})
	slices.SortFunc(oldest, byEviction)
	return closed, oldest[:min(flows, len(oldest))], err
}
