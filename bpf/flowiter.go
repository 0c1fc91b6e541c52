// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// flowIter asks the kernel which entries of map flows are past their time
// (expire.c).
type flowIter struct {
	objects expirePrograms
	iter    *link.Iter
}

// openFlowIter loads the iterator. Close it.
func openFlowIter(flows *ebpf.Map, t flowTimeouts) (*flowIter, error) {
	spec, err := loadExpire()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables[expireVarConfigTimeouts].Set(t); err != nil {
		return nil, err
	}
	it := &flowIter{}
	if err := spec.LoadAndAssign(&it.objects, nil); err != nil {
		return nil, fmt.Errorf("load the iterator over map flows: %w", err)
	}
	it.iter, err = link.AttachIter(link.IterOptions{Program: it.objects.ShuntExpired, Map: flows})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach the iterator over map flows: %w", err), it.objects.Close())
	}
	return it, nil
}

// Close lets go of the iterator.
func (it *flowIter) Close() error { return errors.Join(it.iter.Close(), it.objects.Close()) }

// flowRecord is struct expired of expire.c.
type flowRecord struct {
	key  maps.FlowKey
	flow maps.Flow
}

const (
	flowRecordSize = int(unsafe.Sizeof(flowRecord{}))
	// flowChunk is how much is read by one system call: the kernel's own buffer.
	flowChunk = 32 << 10
)

// each visits the expired entries until visit says no, and gives the number of all
// entries of the map; -1 where it did not come to the end.
func (it *flowIter) each(visit func(*flowRecord) bool) (count int, err error) {
	r, err := it.iter.Open()
	if err != nil {
		return -1, fmt.Errorf("open the iterator over map flows: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	count = -1
	buf := make([]byte, 0, flowChunk+flowRecordSize)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		switch {
		case errors.Is(err, io.EOF):
			if count < 0 {
				return -1, errors.New("read the iterator over map flows: it ended without a count")
			}
			return count, nil
		case errors.Is(err, unix.EAGAIN): // a million entries of which none has expired: there are more
		case err != nil:
			return -1, fmt.Errorf("read the iterator over map flows: %w", err)
		}
		rest := buf[:len(buf)+n]
		for ; len(rest) >= flowRecordSize; rest = rest[flowRecordSize:] {
			var rec flowRecord
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&rec)), flowRecordSize), rest)
			if rec.key.Kind == 0 {
				count = int(rec.flow.Used)
			} else if !visit(&rec) {
				return -1, nil
			}
		}
		buf = buf[:copy(buf, rest)]
	}
}

// eachExpired is flowIter.each for kernels that have no such iterator: every entry
// is read by system calls.
func eachExpired(flows *ebpf.Map, t *flowTimeouts, visit func(*flowRecord) bool) (count int, err error) {
	now := monotonic()
	stop := errors.New("stop")
	err = maps.EachFlow(flows, func(k *maps.FlowKey, f *maps.Flow) error {
		count++
		if t.expired(f, now) && !visit(&flowRecord{*k, *f}) {
			return stop
		}
		return nil
	})
	if errors.Is(err, stop) {
		return -1, nil
	}
	return count, err
}

// monotonic is bpf_ktime_get_ns().
func monotonic() uint64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0 // every kernel has it; nothing expires at 0
	}
	return uint64(ts.Nano())
}
