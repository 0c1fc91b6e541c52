// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"shunt/maps"
)

// flowTable removes flows from map flows or flows_new while programs use them.
//
// A flow has one to three entries (maps.Flow.Keys). The age of one entry does not prove that the
// flow has expired: the entry may have been lost and made again, or be older than the flow's
// other entries. So all entries are read, and the latest use counts. A packet may use the flow
// between that read and the deletion of an entry. So if the kernel supports it (5.14), an entry
// is read and deleted by one system call, and inserted again if it has changed.
type flowTable struct {
	m *ebpf.Map
	// takes reports whether the kernel can read and delete an entry by one system call.
	takes bool
	// before is called before an entry is deleted or refreshed, so that tests can use the flow
	// at that moment; else nil.
	before func(maps.FlowKey)
}

func newFlowTable(m *ebpf.Map) *flowTable {
	var none maps.Flow
	err := m.LookupAndDelete(maps.FlowKey{}, &none) // a key without a kind is never in the map
	return &flowTable{m: m, takes: errors.Is(err, ebpf.ErrKeyNotExist)}
}

// entries returns the current entries of a flow, and the flow's state. The state is that of the
// entry used last: a packet writes the time, and the flags of client_said and backend_said, to
// all entries (track.h). known is an entry of the flow that was read earlier. Entries of another
// flow under the same keys are left out (maps.Flow.IsSame), such as those of an earlier
// connection with the same five-tuple and another backend.
func (t *flowTable) entries(known *flowRecord) (all []flowRecord, flow maps.Flow, err error) {
	keys := known.flow.Keys()
	if !slices.Contains(keys, known.key) {
		keys = append(keys, known.key) // an entry under a key that the flow no longer has
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

// remove deletes all entries of a flow if ended returns true for its latest state. Otherwise it
// writes the latest use to the expired entries. It returns the number of deleted entries: 0 if
// the flow is retained.
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
		if used != nil { // used since the read
			return 0, t.putBack(all[:i], used)
		}
	}
	return len(all), nil
}

// refresh writes the time of the flow's latest use, and the flags of client_said and
// backend_said, to the expired entries. It reads each entry again immediately before the write,
// and skips one that a packet has updated meanwhile.
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

// removeOne deletes an entry unless it has changed since it was read. A changed entry remains in
// the map. removeOne returns it if it still belongs to the same flow.
func (t *flowTable) removeOne(was *flowRecord) (used *maps.Flow, err error) {
	var now maps.Flow
	changed, err := removeIf(t.m, t.takes, was.key, &now, func() bool { return now == was.flow })
	if err != nil {
		err = fmt.Errorf("delete flow %s: %w", was.key, err)
	}
	if !changed || !now.IsSame(&was.flow) {
		return nil, err
	}
	return &now, err
}

// removeIf reads the entry of a key into *value, deletes the entry if removable then returns true,
// and reports whether the entry remains. A program may write the entry at any moment: with takes,
// the entry is read and deleted in one step, and put back if it is not removable.
func removeIf[V any](m *ebpf.Map, takes bool, key any, value *V, removable func() bool) (remains bool, err error) {
	if takes {
		err = m.LookupAndDelete(key, value)
	} else {
		err = m.Lookup(key, value)
	}
	if err == nil {
		remains = !removable()
		switch {
		case takes && remains:
			err = m.Update(key, value, ebpf.UpdateNoExist)
		case !takes && !remains:
			err = m.Delete(key)
		}
	}
	// ErrKeyExist: an entry that a program has inserted meanwhile is newer.
	if errors.Is(err, ebpf.ErrKeyNotExist) || errors.Is(err, ebpf.ErrKeyExist) {
		err = nil
	}
	return remains, err
}

// putBack inserts the deleted entries of a flow that is in use again.
func (t *flowTable) putBack(deleted []flowRecord, flow *maps.Flow) error {
	var errs []error
	for i := range deleted {
		errs = append(errs, t.put(deleted[i].key, flow))
	}
	return errors.Join(errs...)
}

// put inserts an entry unless there is one: an entry that a program has inserted meanwhile is
// newer.
func (t *flowTable) put(k maps.FlowKey, f *maps.Flow) error {
	err := t.m.Update(k, f, ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("put back flow %s: %w", k, err)
	}
	return nil
}
