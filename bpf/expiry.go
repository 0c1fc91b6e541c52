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

// Expiry removes flows of the packet path from map flows: those that are past
// their time, and when the map is nearly full those that ended, and then those
// that were used the longest ago, UDP before TCP. It asks the map as it is: what a pass has missed
// is made good by the next.
type Expiry struct {
	o     ExpiryOptions
	flows *ebpf.Map
	table *flowTable
	// timeouts are those of the programs.
	timeouts flowTimeouts
	iter     *flowIter // nil: the kernel has none
	size     uint32
	// most is expiryStep, iterFrom the number of entries from which on the iterator is
	// used; less in tests.
	most     int
	iterFrom uint32

	used             atomic.Uint32
	expired, evicted atomic.Uint64
	// pressed: the last pass found the map nearly full.
	pressed bool
}

// ExpiryOptions is what an Expiry needs.
type ExpiryOptions struct {
	// Set has the maps that the programs use; Timeouts are theirs.
	Set      *maps.Set
	Timeouts Timeouts
	Log      *zap.Logger
}

const (
	// expiryPeriod is the time between two passes, expiryPressed where there was not
	// enough room after one.
	expiryPeriod  = 5 * time.Second
	expiryPressed = 500 * time.Millisecond
	// A step looks at so many entries to be removed at most, and the next begins after a
	// pause: that is 2 MB to remember, and some 50 ms. A pass has so many steps at most.
	expiryStep  = 16384
	expirySteps = 64
	expiryPause = 20 * time.Millisecond
	// The kernel's iterator takes its time for every bucket, an empty one too, and a
	// system call that reads many entries only for those. They are equal where one
	// bucket of so many has an entry (BenchmarkExpiryPass).
	iterFill = 8
	// Above so many percent of its size the map is under pressure, until it is below
	// as many again.
	pressureHigh, pressureLow = 90, 80
)

// NewExpiry makes one; Run it.
func NewExpiry(o ExpiryOptions) *Expiry {
	flows := o.Set.Map(maps.NameFlows)
	size := flows.MaxEntries()
	return &Expiry{o: o, flows: flows, size: size, most: expiryStep, iterFrom: size / iterFill}
}

// FlowStats is safe from any goroutine.
func (e *Expiry) FlowStats() maps.FlowStats {
	return maps.FlowStats{
		Expired: e.expired.Load(), Evicted: e.evicted.Load(),
		Fill: maps.Fill{Map: maps.NameFlows, Flag: maps.FlagFlows, Used: e.used.Load(), Size: e.size},
	}
}

// Run removes flows until the context ends. It returns nil then. A pass that fails
// is worth a warning: the next tries again.
func (e *Expiry) Run(ctx context.Context) error {
	if err := e.open(); err != nil {
		return err
	}
	defer e.close()
	for {
		enough, err := e.pass(ctx)
		if err != nil && ctx.Err() == nil {
			e.o.Log.Warn("not every flow that has ended could be removed", zap.Error(err))
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

// open finds out what the kernel has.
func (e *Expiry) open() (err error) {
	if e.timeouts, err = e.o.Timeouts.effective(); err != nil {
		return fmt.Errorf("read how long flows are remembered: %w", err)
	}
	e.table = newFlowTable(e.flows)
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

// sleep waits, and says whether the context is still good.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// pass goes through the whole map, and says whether there is room enough.
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

// step removes flows that are past their time, as many as fit into one step. Count
// is that of all entries before, -1 where there is more to remove.
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
	removed, err = e.remove(found, &e.expired, math.MaxInt, func(f *maps.Flow) bool {
		return e.timeouts.expired(f, monotonic())
	})
	return count, removed, err
}

// remove removes those flows of which ended says that they have, until so many
// entries are gone, and counts the flows.
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

// relieve makes room where the map is under pressure, a step of it, and says
// whether that was enough.
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
	e.o.Log.Warn("map flows is nearly full: connections that had ended, and then those that were used the longest ago, had to go",
		zap.Int("ended_entries", ended), zap.Int("evicted_entries", evicted),
		zap.Uint64("entries", used), zap.Uint32("size", e.size), zap.String("flag", maps.FlagFlows))
	return used*100 <= uint64(e.size)*pressureLow, err
}

// evict removes so many entries of these flows, in their order, unless a flow was used since.
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

// byEviction orders flows that have not ended: UDP before TCP, and the oldest first. A flood of
// datagrams with false sources can fill the map, which takes a connection a handshake; and the
// next datagram of a flow that had to go begins it anew, while a connection would be lost.
func byEviction(a, b flowRecord) int {
	isTCP := func(r flowRecord) int {
		if r.flow.Protocol == unix.IPPROTO_TCP {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(isTCP(a), isTCP(b)), cmp.Compare(a.flow.Used, b.flow.Used))
}

// candidates finds flows that may go, by the one entry of theirs that each has:
// those that ended, and of the others the first by byEviction, sorted, which have so many
// entries at least; no more of either than a step removes.
func (e *Expiry) candidates(entries int) (closed, oldest []flowRecord, err error) {
	flows := min((entries+1)/2, e.most)
	err = maps.EachFlow(e.flows, func(k *maps.FlowKey, f *maps.Flow) error {
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
