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

// flowIter reads the expired entries of map flows by an iterator in the kernel (expire.c).
type flowIter struct {
	objects expirePrograms
	iter    *link.Iter
}

// openFlowIter loads and attaches the iterator. The caller closes it.
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

// Close closes the iterator and its program.
func (it *flowIter) Close() error { return errors.Join(it.iter.Close(), it.objects.Close()) }

// flowRecord is struct expired of expire.c.
type flowRecord struct {
	key  maps.FlowKey
	flow maps.Flow
}

const (
	flowRecordSize = int(unsafe.Sizeof(flowRecord{}))
	// flowChunk is how many bytes one system call reads: the size of the kernel's own buffer.
	flowChunk = 32 << 10
)

// each calls visit for each expired entry, until visit returns false. It returns the number of
// all entries in the map, expired or not; -1 if visit returned false.
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
		case errors.Is(err, unix.EAGAIN): // the kernel stops after a million entries without output
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

// eachExpired does the same as flowIter.each for kernels without such iterators: it reads every
// entry by system calls.
func eachExpired(flows *ebpf.Map, t *flowTimeouts, visit func(*flowRecord) bool) (count int, err error) {
	now := monotonic()
	stop := errors.New("stop")
	err = maps.EachEntry(flows, func(k *maps.FlowKey, f *maps.Flow) error {
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

// monotonic returns the time of the clock of bpf_ktime_get_ns(), CLOCK_MONOTONIC, in ns.
func monotonic() uint64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0 // every kernel has this clock; at time 0 nothing expires
	}
	return uint64(ts.Nano())
}
