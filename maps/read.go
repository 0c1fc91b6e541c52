// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
)

// Dump reads the maps.
func (k *Kernel) Dump() (*Dump, error) {
	d := &Dump{
		Frontends: map[FrontendKey]Frontend{},
		Slots:     make([]uint32, len(k.slots)),
		Backends:  map[uint32]Backend{},
		Names:     map[uint32]Name{},
		NodeAddrs: map[netip.Addr]uint32{},
		Sources:   map[SourceRangeKey]bool{},
	}
	for i := range k.slots {
		d.Slots[i] = atomic.LoadUint32(&k.slots[i].ID)
	}
	for id := range k.backends {
		if be, used := k.Backend(uint32(id)); used {
			d.Backends[uint32(id)] = be
		}
	}
	err := k.eachFrontend(func(key FrontendKey, v Frontend) { d.Frontends[key] = v })
	if err == nil {
		err = k.dumpNames(d)
	}
	if err == nil {
		err = k.dumpAddrs(d)
	}
	if err == nil {
		err = k.dumpSourceRanges(d)
	}
	return d, err
}

// eachFrontend calls visit for the entries of map services.
func (k *Kernel) eachFrontend(visit func(FrontendKey, Frontend)) error {
	var key FrontendKey
	var v Frontend
	it := k.set.maps[mapServices].Iterate()
	for it.Next(&key, &v) {
		v.Key = FrontendKey{} // the key is an argument of its own
		visit(key, v)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read map %s: %w", mapServices, err)
	}
	return nil
}

func (k *Kernel) dumpNames(d *Dump) error {
	var id uint32
	var name abiServiceName
	it := k.set.maps[mapNames].Iterate()
	for it.Next(&id, &name) {
		d.Names[id] = name.name()
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read map %s: %w", mapNames, err)
	}
	return nil
}

func (k *Kernel) dumpSourceRanges(d *Dump) error {
	var key SourceRangeKey
	var v uint8
	it := k.set.maps[mapSources].Iterate()
	for it.Next(&key, &v) {
		switch {
		case key.ServiceId != anyService:
			d.Sources[key] = true
		case v == 0:
			d.Allocated = append(d.Allocated, key.Prefix().Addr())
		default:
			d.ServiceCIDRs = append(d.ServiceCIDRs, key.Prefix())
		}
	}
	slices.SortFunc(d.Allocated, netip.Addr.Compare)
	slices.SortFunc(d.ServiceCIDRs, netip.Prefix.Compare)
	if err := it.Err(); err != nil {
		return fmt.Errorf("read map %s: %w", mapSources, err)
	}
	return nil
}

// Reasons returns how often programs ended by each reason, summed over CPUs, by the names of
// ReasonNames.
func (k *Kernel) Reasons() (map[string]uint64, error) {
	names, err := reasonNames()
	if err != nil {
		return nil, err
	}
	counts := make(map[string]uint64, len(names))
	for r, name := range names {
		var perCPU []uint64
		if err := k.set.maps[mapCounters].Lookup(r, &perCPU); err != nil {
			return nil, fmt.Errorf("read the counter of reason %s: %w", name, err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		counts[name] = sum
	}
	return counts, nil
}

// AffinityUsed returns the number of entries in map affinity. It reads the whole map.
func (k *Kernel) AffinityUsed() (uint32, error) {
	var n uint32
	var key AffinityKey
	var v AffinityValue
	it := k.set.maps[mapAffinity].Iterate()
	for it.Next(&key, &v) {
		n++
	}
	if err := it.Err(); err != nil {
		return n, fmt.Errorf("read map %s: %w", mapAffinity, err)
	}
	return n, nil
}
