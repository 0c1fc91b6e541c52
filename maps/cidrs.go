// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"sync/atomic"
)

// anyService is the service id of service CIDRs in map sources: no service port has it.
const anyService = 0

// SetServiceCIDR adds a range. The programs refuse the addresses in it that are neither a
// frontend's nor allocated.
func (k *Kernel) SetServiceCIDR(p netip.Prefix) error {
	what := func() string { return "set service CIDR " + p.String() }
	if err := k.wrap(k.putSourceRange(NewSourceRangeKey(anyService, p)), mapSources, what); err != nil {
		return err
	}
	return k.countServiceCIDRs()
}

// DeleteServiceCIDR removes a range; it need not exist.
func (k *Kernel) DeleteServiceCIDR(p netip.Prefix) error {
	err := k.set.maps[mapSources].Delete(NewSourceRangeKey(anyService, p))
	if err := k.wrap(ignoreMissing(err), mapSources, func() string { return "delete service CIDR " + p.String() }); err != nil {
		return err
	}
	return k.countServiceCIDRs()
}

// SetAllocated excepts an address from the service CIDRs, so that programs do not refuse it: a
// Service without frontends here has this address.
func (k *Kernel) SetAllocated(a netip.Addr) error {
	err := k.putSourceRangeValue(allocatedKey(a), 0)
	return k.wrap(err, mapSources, func() string { return "except " + a.String() + " from the service CIDRs" })
}

// DeleteAllocated removes the exception of SetAllocated; it need not exist.
func (k *Kernel) DeleteAllocated(a netip.Addr) error {
	err := k.set.maps[mapSources].Delete(allocatedKey(a))
	return k.wrap(ignoreMissing(err), mapSources, func() string { return "put " + a.String() + " back into the service CIDRs" })
}

func allocatedKey(a netip.Addr) SourceRangeKey {
	return NewSourceRangeKey(anyService, netip.PrefixFrom(a, a.BitLen()))
}

// countServiceCIDRs writes the number of service CIDRs to map meta, for the programs. CIDRs
// rarely change, so reading the whole map costs little.
func (k *Kernel) countServiceCIDRs() error {
	d := Dump{Sources: map[SourceRangeKey]bool{}}
	err := k.dumpSourceRanges(&d)
	if err == nil {
		atomic.StoreUint32(&k.meta[0].ServiceCidrs, uint32(len(d.ServiceCIDRs)))
	}
	return err
}

// SetServiceCIDR adds a range.
func (f *Fake) SetServiceCIDR(p netip.Prefix) error {
	if !f.cidrs[p] && !f.sourceRangeRoom() {
		return fmt.Errorf("set service CIDR %s: %w", p, f.sizes.NewFullError(mapSources))
	}
	f.cidrs[p] = true
	return nil
}

// DeleteServiceCIDR removes a range.
func (f *Fake) DeleteServiceCIDR(p netip.Prefix) error {
	delete(f.cidrs, p)
	return nil
}

// SetAllocated excepts an address from the service CIDRs.
func (f *Fake) SetAllocated(a netip.Addr) error {
	if !f.allocated[a] && !f.sourceRangeRoom() {
		return fmt.Errorf("except %s from the service CIDRs: %w", a, f.sizes.NewFullError(mapSources))
	}
	f.allocated[a] = true
	delete(f.cidrs, netip.PrefixFrom(a, a.BitLen())) // both have one key
	return nil
}

// DeleteAllocated removes the exception of SetAllocated.
func (f *Fake) DeleteAllocated(a netip.Addr) error {
	delete(f.allocated, a)
	return nil
}
