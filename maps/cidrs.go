package maps

import (
	"fmt"
	"net/netip"
	"sync/atomic"
)

// anyService is the service id of service CIDRs in map sources: nobody's.
const anyService = 0

// SetServiceCIDR adds a range: addresses in it that no service has are refused.
func (k *Kernel) SetServiceCIDR(p netip.Prefix) error {
	if err := k.wrap(k.putSource(NewSourceKey(anyService, p)), mapSources, "set service CIDR "+p.String()); err != nil {
		return err
	}
	return k.countServiceCIDRs()
}

// DeleteServiceCIDR removes a range; it need not be there.
func (k *Kernel) DeleteServiceCIDR(p netip.Prefix) error {
	err := k.set.maps[mapSources].Delete(NewSourceKey(anyService, p))
	if err := k.wrap(ignoreMissing(err), mapSources, "delete service CIDR "+p.String()); err != nil {
		return err
	}
	return k.countServiceCIDRs()
}

// countServiceCIDRs tells programs whether there are any. They hardly ever change,
// so the map can be read.
func (k *Kernel) countServiceCIDRs() error {
	d := Dump{Sources: map[SourceKey]bool{}}
	err := k.dumpSources(&d)
	if err == nil {
		atomic.StoreUint32(&k.meta[0].ServiceCidrs, uint32(len(d.ServiceCIDRs)))
	}
	return err
}

// SetServiceCIDR adds a range.
func (f *Fake) SetServiceCIDR(p netip.Prefix) error {
	if !f.cidrs[p] && !f.sourceRoom() {
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
