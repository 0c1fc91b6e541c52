// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"shunt/maps"
)

// flowTable removes flows from map flows while programs use them.
//
// A flow has two or three entries, and one of them past its time says nothing: it
// may have been lost and made again, or be older than the others. All are looked
// at, and the flow is as late as the latest. Between that look and the deletion of
// an entry it may be used again: the entry is taken out and looked at in one
// step, where the kernel has one (5.14), and put back.
type flowTable struct {
	m *ebpf.Map
	// takes: the kernel can look at an entry and delete it in one step.
	takes bool
	// before is called before an entry is deleted; tests use the flow there. nil
	// otherwise.
	before func(maps.FlowKey)
}

func newFlowTable(m *ebpf.Map) *flowTable {
	var none maps.Flow
	err := m.LookupAndDelete(maps.FlowKey{}, &none) // of no kind: never there
	return &flowTable{m: m, takes: errors.Is(err, ebpf.ErrKeyNotExist)}
}

// entries gives those that are there of the flow of which one is known by its key,
// and the flow as the latest has it: a packet notes what it says, and when, in all
// of them (track.h). An entry under one of the keys that is another flow's is left
// out, also one of an earlier connection between the same ends.
func (t *flowTable) entries(known *flowRecord) (all []flowRecord, flow maps.Flow, err error) {
	keys := known.flow.Keys()
	if !slices.Contains(keys, known.key) {
		keys = append(keys, known.key) // of a flow that was given another place since
	}
	for _, key := range keys {
		rec := flowRecord{key: key}
		err := t.m.Lookup(rec.key, &rec.flow)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return nil, flow, fmt.Errorf("look up flow %s: %w", rec.key, err)
		}
		if !rec.flow.IsSame(&known.flow) {
			continue
		}
		all = append(all, rec)
		if rec.flow.Used >= flow.Used {
			flow = rec.flow
		}
	}
	return all, flow, nil
}

// remove deletes all entries of a flow if ended says so of it, else gives the
// latest use to those that are past their time. It gives how many entries it
// deleted: 0 where the flow stays.
func (t *flowTable) remove(known *flowRecord, timeouts *flowTimeouts, ended func(*maps.Flow) bool) (int, error) {
	all, flow, err := t.entries(known)
	if err != nil || len(all) == 0 {
		return 0, err
	}
	if !ended(&flow) {
		return 0, t.refresh(all, flow, timeouts)
	}
	for i := range all {
		if t.before != nil {
			t.before(all[i].key)
		}
		used, err := t.removeOne(&all[i])
		if err != nil {
			return i, err
		}
		if used != nil { // since we looked: it is alive
			return 0, t.putBack(all[:i], used)
		}
	}
	return len(all), nil
}

// refresh gives the flow's latest use, and what its sides have said, to entries
// that would expire for the lack of it. Each is read again right before: a packet that was
// noted meanwhile has given it all that itself, and is not to be overwritten.
func (t *flowTable) refresh(all []flowRecord, flow maps.Flow, timeouts *flowTimeouts) error {
	now := monotonic()
	for i := range all {
		if !timeouts.expired(&all[i].flow, now) {
			continue
		}
		if t.before != nil {
			t.before(all[i].key)
		}
		var there maps.Flow
		err := t.m.Lookup(all[i].key, &there)
		if err == nil && there.IsSame(&flow) && timeouts.expired(&there, now) {
			there.Used, there.ClientSaid, there.BackendSaid = flow.Used, flow.ClientSaid, flow.BackendSaid
			err = t.m.Update(all[i].key, there, ebpf.UpdateExist)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("refresh flow %s: %w", all[i].key, err)
		}
	}
	return nil
}

// removeOne deletes an entry unless it is another than it was; what it is now is
// given then, and is there, unless that is another flow's.
func (t *flowTable) removeOne(was *flowRecord) (used *maps.Flow, err error) {
	var now maps.Flow
	if t.takes {
		err = t.m.LookupAndDelete(was.key, &now)
	} else {
		err = t.m.Lookup(was.key, &now)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("delete flow %s: %w", was.key, err)
	}
	if now != was.flow {
		if t.takes {
			err = t.put(was.key, &now)
		}
		if !now.IsSame(&was.flow) {
			return nil, err
		}
		return &now, err
	}
	if !t.takes {
		err = t.m.Delete(was.key)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("delete flow %s: %w", was.key, err)
		}
	}
	return nil, nil
}

// putBack makes entries again that were deleted, of a flow that is in use.
func (t *flowTable) putBack(deleted []flowRecord, flow *maps.Flow) error {
	var errs []error
	for i := range deleted {
		errs = append(errs, t.put(deleted[i].key, flow))
	}
	return errors.Join(errs...)
}

// put adds an entry where there is none: one that a program has made meanwhile is
// newer.
func (t *flowTable) put(k maps.FlowKey, f *maps.Flow) error {
	err := t.m.Update(k, f, ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("put back flow %s: %w", k, err)
	}
	return nil
}
