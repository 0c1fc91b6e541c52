// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// carryOver copies the contents of old maps to new ones of the same ABI. Backends retain their
// ids, since sockets have these ids in their storage. Entries that do not fit are left out: the
// reconcile loop adds missing entries.
func carryOver(from, to *Set) (err error) {
	old, err := NewKernel(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	k, err := NewKernel(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	dump, err := old.Dump()
	if err != nil {
		return err
	}
	for id, be := range dump.Backends {
		if int(id) >= len(k.backends) {
			continue
		}
		if err := k.SetBackend(id, be); err != nil {
			return err
		}
		k.stats[id] = old.Connections(id)
	}
	for key := range dump.Sources { // before the frontends, which refuse clients in no source range
		if err := k.SetSourceRange(key); err != nil && !isFull(err) && key.check() == nil {
			return err
		}
	}
	return errors.Join(carryFrontends(dump, k), carryAffinity(old, k))
}

// carryFrontends copies frontends with their names, and slots at the same indices, in the order
// of carryRank. Entries that do not fit are left out: the first reconcile makes room for those
// of higher rank. The node's addresses and the service CIDRs are copied first.
func carryFrontends(dump *Dump, k *Kernel) error {
	for a, flags := range dump.NodeAddrs {
		if err := k.SetNodeAddr(a, flags); err != nil && !isFull(err) {
			return err
		}
	}
	for _, a := range dump.Allocated { // before the service CIDRs, by which they would be refused
		if err := k.SetAllocated(a); isFull(err) {
			return nil // the loop adds the CIDRs when all allocated addresses fit
		} else if err != nil {
			return err
		}
	}
	for _, p := range dump.ServiceCIDRs {
		if err := k.SetServiceCIDR(p); err != nil && !isFull(err) {
			return err
		}
	}
	keys := dump.SortedFrontends()
	slices.SortStableFunc(keys, func(a, b FrontendKey) int { return carryRank(dump, a) - carryRank(dump, b) })
	for _, key := range keys {
		if err := carryFrontend(dump, key, k); err != nil && !isFull(err) {
			return err
		}
	}
	return nil
}

// carryRank returns a frontend's rank, by which room is assigned: cluster IPs, node ports,
// load-balancer IPs, external IPs.
func carryRank(dump *Dump, key FrontendKey) int {
	order := []FrontendKind{UndefinedPort, ClusterIP, NodePort, LoadBalancerIP, ExternalIP}
	return slices.Index(order, FrontendKind(dump.Frontends[key].Kind))
}

func carryFrontend(dump *Dump, key FrontendKey, k *Kernel) error {
	svc := dump.Frontends[key]
	for _, r := range []SlotRange{svc.Inside, svc.Outside} {
		ids, err := dump.Range(r)
		if err != nil || uint64(r.Base)+uint64(r.Count) > uint64(len(k.slots)) ||
			slices.ContainsFunc(ids, func(id uint32) bool { return int(id) >= len(k.backends) }) {
			return nil
		}
	}
	if n, named := dump.Names[svc.Id]; named && svc.Id != 0 {
		if err := k.SetName(svc.Id, n); err != nil {
			return err
		}
	}
	for _, r := range []SlotRange{svc.Inside, svc.Outside} {
		ids, err := dump.Range(r)
		if err == nil {
			err = k.WriteSlots(r.Base, ids)
		}
		if err != nil {
			return err
		}
	}
	return k.SetFrontend(key, svc)
}

func carryAffinity(old, k *Kernel) error {
	var key AffinityKey
	var v AffinityValue
	it := old.set.maps[mapAffinity].Iterate()
	for it.Next(&key, &v) {
		if err := k.set.maps[mapAffinity].Put(key, v); err != nil {
			return fmt.Errorf("copy session affinity: %w", err)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("copy session affinity: %w", err)
	}
	return nil
}

// carryFlows copies the entries of map flows to another map flows, which may have another size.
// It replaces an entry that exists there if the copied one was used later. lost is the number of
// entries for which there was no room, newest the latest use (Flow.Used) of all entries of from.
// An error must not prevent the start of the daemon: the caller only reports it.
//
// carryFlows must not be used between maps of different ABI, where the meaning of an entry is
// unknown. So an upgrade to another ABI breaks connections from outside.
func carryFlows(from, to *ebpf.Map) (lost int, newest uint64, err error) {
	err = EachEntry(from, func(k *FlowKey, f *Flow) error {
		newest = max(newest, f.Used)
		var there Flow
		flags := ebpf.UpdateNoExist // an entry that a program inserts now is newer
		if to.Lookup(k, &there) == nil {
			if there.Used >= f.Used {
				return nil
			}
			flags = ebpf.UpdateExist
		}
		err := to.Update(k, f, flags)
		switch {
		case errors.Is(err, unix.E2BIG):
			lost++
		case errors.Is(err, ebpf.ErrKeyExist), errors.Is(err, ebpf.ErrKeyNotExist): // a program changed it
		case err != nil:
			return fmt.Errorf("copy flow %s: %w", k, err)
		}
		return nil
	})
	return lost, newest, err
}

// dropFlows deletes the entries that carryFlows copied and that were deleted from the old map
// afterwards. Programs would find such an entry before a newer, unconfirmed flow, which is in
// flows_new. newest is the result of carryFlows: programs have written the entries that were used
// later.
func dropFlows(from, to *ebpf.Map, newest uint64) error {
	return EachEntry(to, func(k *FlowKey, f *Flow) error {
		var there Flow
		if f.Used > newest || !errors.Is(from.Lookup(k, &there), ebpf.ErrKeyNotExist) {
			return nil
		}
		if err := ignoreMissing(to.Delete(k)); err != nil {
			return fmt.Errorf("delete flow %s, which is over: %w", k, err)
		}
		return nil
	})
}

func isFull(err error) bool {
	var full *FullError
	return errors.As(err, &full)
}
