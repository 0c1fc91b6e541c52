// SPDX-License-Identifier: Apache-2.0

package lb

// Service CIDRs: an address in them that no service has is refused. A cluster IP whose service is
// not programmed is allocated all the same: another proxy serves it, or its entries had no room.
// Such addresses are excepted from the ranges. If there is no room for all exceptions, no range is
// in effect: refusing nothing does no harm, refusing the address of a live service does.

import (
	"errors"
	"net/netip"
	"slices"

	"go.uber.org/zap"

	"shunt/maps"
)

// exceptions are the addresses that are excepted from the service CIDRs.
type exceptions struct {
	// of has the addresses to except for each service. users counts, for each address, the services
	// that need it.
	of    map[ServiceName][]netip.Addr
	users map[netip.Addr]int
	// held are those in the maps.
	held map[netip.Addr]bool
	// changed: the maps may not hold the wanted exceptions.
	changed bool
	// over: the excepted cluster IPs need more than exceptionRoom entries, so no service CIDR
	// is in effect. reconcileCIDRs logs when this begins.
	over bool
}

func newExceptions() exceptions {
	return exceptions{of: map[ServiceName][]netip.Addr{}, users: map[netip.Addr]int{}, held: map[netip.Addr]bool{}}
}

// exceptionRoom returns how many entries of map sources are kept for exceptions: a quarter, since
// another proxy may serve much of a cluster.
func exceptionRoom(s maps.Sizes) int { return int(s.Sources / 4) }

// unserved returns the cluster IPs of a service that no other service has won and that are not in
// the maps.
func (r *reconciler) unserved(svc *Service) []netip.Addr {
	var unserved []netip.Addr
	for _, a := range svc.ClusterIPs {
		k := maps.NewFrontendKey(a, 0, 0)
		best := r.claims.to[k]
		if mine := len(best) == 0 || best[0].port.of.name == svc.Name; mine && r.owners[k] == nil {
			unserved = append(unserved, a)
		}
	}
	return unserved
}

// except sets the addresses to except for a service. Most services have none.
func (r *reconciler) except(name ServiceName, want []netip.Addr) {
	e := &r.excepted
	old := e.of[name]
	if slices.Equal(old, want) {
		return
	}
	e.changed = true
	for _, a := range want {
		e.users[a]++
	}
	for _, a := range old {
		if e.users[a]--; e.users[a] == 0 {
			delete(e.users, a)
		}
	}
	if e.of[name] = want; len(want) == 0 {
		delete(e.of, name)
	}
}

// exceptNow writes the exceptions for a service before its entries are deleted. reconcileCIDRs
// retries those that fail.
func (r *reconciler) exceptNow(name ServiceName) {
	room := exceptionRoom(r.tables.Sizes())
	if len(r.excepted.users) > room {
		return // no range is in effect
	}
	for _, a := range r.excepted.of[name] {
		if !r.excepted.held[a] && len(r.excepted.held) < room {
			_ = r.addException(a) // see reconcileCIDRs
		}
	}
}

func (r *reconciler) addException(a netip.Addr) error {
	if err := r.tables.SetAllocated(a); err != nil {
		return err
	}
	r.writes.ServiceCidrs++
	// A service CIDR of this single address has the same key in map sources: it was overwritten.
	r.cidrs = slices.DeleteFunc(r.cidrs, func(p netip.Prefix) bool { return p == netip.PrefixFrom(a, a.BitLen()) })
	r.excepted.held[a] = true
	return nil
}

// reconcileExceptions makes the maps hold these exceptions.
func (r *reconciler) reconcileExceptions(want map[netip.Addr]int) error {
	var errs []error
	for a := range r.excepted.held {
		if want[a] > 0 {
			continue
		}
		err := r.tables.DeleteAllocated(a)
		if err == nil {
			r.writes.ServiceCidrs++
			delete(r.excepted.held, a)
		}
		errs = append(errs, err)
	}
	for a := range want {
		if !r.excepted.held[a] {
			errs = append(errs, r.addException(a))
		}
	}
	return maps.FirstErrors(errs, 0)
}

// reconcileCIDRs makes the maps hold these service CIDRs and the exceptions from them. An exception
// is written before the range that contains it, and deleted after it.
func (r *reconciler) reconcileCIDRs(cidrs []netip.Prefix) error {
	var err error
	e := &r.excepted
	began := !e.over
	if e.over = len(e.users) > exceptionRoom(r.tables.Sizes()); e.over && began {
		r.log.Warn("addresses that no service has are not refused: not all that another proxy's services have, or that "+
			"could not be programmed, can be distinguished from them; start shunt run with a larger "+maps.FlagSources,
			zap.Int("addresses", len(e.users)), zap.Int("room", exceptionRoom(r.tables.Sizes())))
	}
	if e.over {
		if err = r.reconcileRanges(nil); err == nil {
			err = r.reconcileExceptions(nil)
		}
	} else if err = r.reconcileExceptions(e.users); err == nil {
		err = r.reconcileRanges(r.rangesFor(cidrs))
	} else {
		err = errors.Join(err, r.reconcileRanges(nil))
	}
	r.excepted.changed = err != nil // so that the next reconcile tries again
	return err
}

// rangesFor returns the service CIDRs that can be in effect: the first ones that fit, without
// single addresses that are excepted.
func (r *reconciler) rangesFor(cidrs []netip.Prefix) []netip.Prefix {
	want := slices.DeleteFunc(slices.Clone(cidrs), func(p netip.Prefix) bool {
		return p.IsSingleIP() && r.excepted.held[p.Addr()]
	})
	if size := int(r.tables.Sizes().Sources) - len(r.excepted.held); len(want) > size {
		r.log.Warn("not all service CIDRs fit; start shunt run with a larger "+maps.FlagSources,
			zap.Int("service_cidrs", len(want)), zap.Int("size", size))
		want = want[:size]
	}
	return want
}

// reconcileRanges makes the maps hold these service CIDRs. Removals come first and make room for
// additions.
func (r *reconciler) reconcileRanges(want []netip.Prefix) error {
	var errs []error
	r.cidrs = slices.DeleteFunc(r.cidrs, func(p netip.Prefix) bool {
		if slices.Contains(want, p) {
			return false
		}
		err := r.tables.DeleteServiceCIDR(p)
		if err == nil {
			r.writes.ServiceCidrs++
		}
		errs = append(errs, err)
		return err == nil
	})
	for _, p := range want {
		if slices.Contains(r.cidrs, p) {
			continue
		}
		if err := r.tables.SetServiceCIDR(p); err != nil {
			errs = append(errs, err)
			continue
		}
		r.writes.ServiceCidrs++
		r.cidrs = append(r.cidrs, p)
	}
	return maps.FirstErrors(errs, 0)
}
