// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

// notesPeriod is the interval between two scans of the maps in which programs make notes.
// Programs ignore an outdated note whether it was removed or not. Its removal saves no time, but
// without outdated notes the number of entries reflects the node's current traffic.
const notesPeriod = 30 * time.Second

// removeNotes removes the expired entries of maps flows_new, directs, local_ports and fragments.
func (e *Expiry) removeNotes() error {
	now := monotonic()
	outdated := func(noted uint64, age uint64) bool { return int64(now-noted) >= int64(age) }
	return errors.Join(e.removeNewFlows(),
		removeOutdated(e, maps.NameDirects, func(k *maps.FlowKey, noted *uint64) bool {
			age := e.timeouts.UdpEstablished
			if k.Protocol == unix.IPPROTO_TCP {
				age = e.timeouts.TcpEstablished
			}
			return outdated(*noted, age)
		}),
		removeOutdated(e, maps.NameLocalPorts, func(_ *maps.LocalPortKey, noted *uint64) bool {
			return outdated(*noted, uint64(maps.LocalPortAge))
		}),
		removeOutdated(e, maps.NameFragments, func(_ *maps.FragmentKey, f *maps.Fragment) bool {
			return outdated(f.Noted, uint64(maps.FragmentAge))
		}))
}

// removeNewFlows removes the expired flows of map flows_new. FlowStats does not count these: most
// of them got no answer.
func (e *Expiry) removeNewFlows() error {
	var found []flowRecord
	if _, err := eachExpired(e.newFlows.m, &e.timeouts, func(r *flowRecord) bool {
		found = append(found, *r)
		return len(found) < e.most
	}); err != nil {
		return err
	}
	for i := range found {
		if _, err := e.newFlows.remove(&found[i], &e.timeouts, e.isExpired); err != nil {
			return err
		}
	}
	return nil
}

// removeOutdated removes entries of a map of notes for which outdated returns true, at most as
// many as one step may. A program may renew an entry between the read and the deletion. So if the
// kernel supports it (5.14), an entry is read and deleted by one system call, and inserted again
// if it is no longer outdated.
func removeOutdated[K, V any](e *Expiry, name string, outdated func(*K, *V) bool) error {
	m := e.o.Set.Map(name)
	var found []K
	stop := errors.New("stop")
	err := maps.EachEntry(m, func(k *K, v *V) error {
		if !outdated(k, v) {
			return nil
		}
		if found = append(found, *k); len(found) >= e.most {
			return stop
		}
		return nil
	})
	if err != nil && !errors.Is(err, stop) {
		return err
	}
	for i := range found {
		if e.newFlows.before != nil {
			e.newFlows.before(maps.FlowKey{})
		}
		var now V
		if _, err := removeIf(m, e.newFlows.takes, &found[i], &now, func() bool { return outdated(&found[i], &now) }); err != nil {
			return fmt.Errorf("remove an entry of map %s: %w", name, err)
		}
	}
	return nil
}
