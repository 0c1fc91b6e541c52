package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// anyService is the service id of service CIDRs in map sources: nobody's.
const anyService = 0

// newSourceKey makes a key of map sources; the prefix of an IPv4 range is that of
// the same range in IPv6 (see abi.h, struct addr).
func newSourceKey(service uint32, p netip.Prefix) abiSourceKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return abiSourceKey{PrefixBits: uint32(32 + bits), ServiceId: service, Addr: newAddr(p.Masked().Addr())}
}

// prefix gives the key's range, unmapped.
func (k abiSourceKey) prefix() netip.Prefix {
	a, bits := k.Addr.addr(), int(k.PrefixBits)-32
	if a.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits)
}

// SetServiceCIDR adds a range: addresses in it that no service has are refused.
func (k *Kernel) SetServiceCIDR(p netip.Prefix) error {
	err := k.set.maps[mapSources].Put(newSourceKey(anyService, p), uint8(1))
	if errors.Is(err, unix.ENOSPC) {
		err = unix.E2BIG // what the other maps say
	}
	if err := k.wrap(err, mapSources, "set service CIDR "+p.String()); err != nil {
		return err
	}
	return k.countServiceCIDRs()
}

// DeleteServiceCIDR removes a range; it need not be there.
func (k *Kernel) DeleteServiceCIDR(p netip.Prefix) error {
	err := k.set.maps[mapSources].Delete(newSourceKey(anyService, p))
	if err := k.wrap(ignoreMissing(err), mapSources, "delete service CIDR "+p.String()); err != nil {
		return err
	}
	return k.countServiceCIDRs()
}

// countServiceCIDRs tells programs whether there are any. They hardly ever change,
// so the map can be read.
func (k *Kernel) countServiceCIDRs() error {
	all, err := k.readServiceCIDRs()
	if err == nil {
		atomic.StoreUint32(&k.meta[0].ServiceCidrs, uint32(len(all)))
	}
	return err
}

func (k *Kernel) readServiceCIDRs() ([]netip.Prefix, error) {
	var all []netip.Prefix
	var key abiSourceKey
	var v uint8
	it := k.set.maps[mapSources].Iterate()
	for it.Next(&key, &v) {
		if key.ServiceId == anyService {
			all = append(all, key.prefix())
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", mapSources, err)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return all, nil
}

// SetServiceCIDR adds a range.
func (f *Fake) SetServiceCIDR(p netip.Prefix) error {
	if !f.cidrs[p] && len(f.cidrs) >= int(f.sizes.Sources) {
		return fmt.Errorf("set service CIDR %s: %w", p, f.sizes.NewFullError(mapSources))
	}
	f.cidrs[p] = true
	return nil
}

// DeleteServiceCIDR removes one.
func (f *Fake) DeleteServiceCIDR(p netip.Prefix) error {
	delete(f.cidrs, p)
	return nil
}
