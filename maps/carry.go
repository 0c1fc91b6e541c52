package maps

import (
	"errors"
	"fmt"
)

// carryOver copies what old maps hold into new ones of the same ABI, ids and
// all, so that sockets which name a backend's id still name the same one. What
// does not fit is left out: the loop fills in what is missing.
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
	for id, n := range dump.Names {
		if err := k.SetName(id, n); err != nil && !isFull(err) {
			return err
		}
	}
	return errors.Join(carryFrontends(dump, k), carryAffinity(old, k))
}

// carryFrontends copies frontends with their slots, at the same places.
func carryFrontends(dump *Dump, k *Kernel) error {
	for _, key := range dump.SortedFrontends() {
		svc := dump.Frontends[key]
		fits := true
		for _, r := range []SlotRange{svc.Inside, svc.Outside} {
			ids, err := dump.Range(r)
			if err != nil || uint64(r.Base)+uint64(r.Count) > uint64(len(k.slots)) {
				fits = false
				break
			}
			if err := k.WriteSlots(r.Base, ids); err != nil {
				return err
			}
		}
		if !fits {
			continue
		}
		if err := k.SetFrontend(key, svc); err != nil && !isFull(err) {
			return err
		}
	}
	for a, flags := range dump.NodeAddrs {
		if err := k.SetNodeAddr(a, flags); err != nil {
			return err
		}
	}
	for _, p := range dump.ServiceCIDRs {
		if err := k.SetServiceCIDR(p); err != nil && !isFull(err) {
			return err
		}
	}
	return nil
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

func isFull(err error) bool {
	var full *FullError
	return errors.As(err, &full)
}
