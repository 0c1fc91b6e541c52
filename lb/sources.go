// SPDX-License-Identifier: Apache-2.0

package lb

// loadBalancerSourceRanges: which clients from outside may use the load-balancer
// IPs of a service.
//
//   - They restrict load-balancer IPs only, not node ports and external IPs.
//   - They are filtered by family. A family without ranges is open, as with
//     kube-proxy. The converter handles invalid ranges, so that they open no family.
//     A family with a range of all addresses (0.0.0.0/0, ::/0) is open too.
//   - A load-balancer IP may be an address of the node itself, which then connects
//     to the IP from that same address: where a range contains an address of the node,
//     the service's load-balancer IPs are allowed clients as well.
//
// In the maps they are entries of map sources, by service id, and a flag of the
// frontends. The entries are written before the first frontend gets the flag, and
// deleted after the last one has lost it.

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"shunt/maps"
)

func ofRanges(svc *Service, f Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(svc.SourceRanges), func(p netip.Prefix) bool { return FamilyOf(p.Addr()) != f })
}

// isRestricted reports whether the service has source ranges of the family, and none of them is a
// range of all addresses (/0). Such a range admits clients whose source is not known, too, so that
// programs look up no range.
func isRestricted(svc *Service, f Family) bool {
	ranges := ofRanges(svc, f)
	return len(ranges) > 0 && !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Bits() == 0 })
}

// planSourceRanges returns the source ranges of a family, sorted; none where no frontend of the plan
// uses them.
func planSourceRanges(svc *Service, frontends []frontendPlan, family Family, at place) []netip.Prefix {
	if !slices.ContainsFunc(frontends, func(f frontendPlan) bool { return f.ranged }) {
		return nil
	}
	ranges := ofRanges(svc, family)
	containsNode := slices.ContainsFunc(at.addrs, func(a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	})
	if containsNode {
		for _, a := range svc.LoadBalancerIPs {
			if FamilyOf(a) == family {
				ranges = append(ranges, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	slices.SortFunc(ranges, netip.Prefix.Compare)
	return slices.Compact(ranges)
}

// bind calls OnSourceRanges with the load-balancer IPs that are restricted now or will be. The
// caller calls unbind after the maps are written: that leaves only those that are restricted now.
func (l *Loop) bind() (unbind func()) {
	if l.o.OnSourceRanges == nil || l.isSynced && !l.rangedChanged {
		return func() {}
	}
	want := l.boundAddrs()
	tell := func(addrs []netip.Addr) {
		slices.SortFunc(addrs, netip.Addr.Compare)
		if addrs = slices.Compact(addrs); l.isSynced && slices.Equal(addrs, l.bound) {
			return
		}
		l.bound = addrs
		l.o.OnSourceRanges(addrs)
	}
	tell(slices.Concat(l.bound, want))
	return func() {
		tell(want)
		l.rangedChanged = false
	}
}

// boundAddrs returns the load-balancer IPs that source ranges restrict.
func (l *Loop) boundAddrs() []netip.Addr {
	var addrs []netip.Addr
	for name := range l.ranged {
		svc, _ := l.o.Store.get(name)
		if svc == nil {
			continue
		}
		for _, a := range svc.LoadBalancerIPs {
			if isRestricted(svc, FamilyOf(a)) {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// outsideAddrs returns the node's addresses without loopback, sorted.
func outsideAddrs(addrs []netip.Addr) []netip.Addr {
	outside := slices.DeleteFunc(slices.Clone(addrs), netip.Addr.IsLoopback)
	slices.SortFunc(outside, netip.Addr.Compare)
	return outside
}

// addSourceRanges adds the ranges that the port's plan wants and the map has not. Where the map is full,
// it deletes an unwanted range for each new one: for a moment fewer clients are allowed than should
// be, never more. noRoom is the error if there is no room even so; some ranges may have been added.
func (r *reconciler) addSourceRanges(p *servicePort, want portPlan) (noRoom, err error) {
	for _, s := range want.sources {
		if _, there := slices.BinarySearchFunc(p.sources, s, netip.Prefix.Compare); there {
			continue
		}
		err := r.setSourceRange(p, s)
		var full *maps.FullError
		if errors.As(err, &full) {
			err = r.replaceSource(p, want, s)
		}
		if errors.As(err, &full) {
			return err, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (r *reconciler) setSourceRange(p *servicePort, s netip.Prefix) error {
	if err := r.tables.SetSourceRange(maps.NewSourceRangeKey(p.id, s)); err != nil {
		return fmt.Errorf("service %s: %w", p.key.service, err)
	}
	r.writes.Sources++
	r.sources++
	at, _ := slices.BinarySearchFunc(p.sources, s, netip.Prefix.Compare)
	p.sources = slices.Insert(p.sources, at, s)
	return nil
}

// replaceSource adds a range in place of one that the port's plan does not want. If that fails it
// restores the old one: with the flag set and no range, no client is allowed.
func (r *reconciler) replaceSource(p *servicePort, want portPlan, s netip.Prefix) error {
	i := slices.IndexFunc(p.sources, func(s netip.Prefix) bool {
		_, wanted := slices.BinarySearchFunc(want.sources, s, netip.Prefix.Compare)
		return !wanted
	})
	if i < 0 {
		return r.setSourceRange(p, s) // returns the error of the full map
	}
	old := p.sources[i]
	if err := r.deleteSourceRange(p, old); err != nil {
		return err
	}
	p.sources = slices.Delete(p.sources, i, i+1)
	err := r.setSourceRange(p, s)
	if err != nil {
		err = errors.Join(err, r.setSourceRange(p, old))
	}
	return err
}

// deleteSourceRange deletes a range from the map. The caller removes it from the port's list.
func (r *reconciler) deleteSourceRange(p *servicePort, s netip.Prefix) error {
	if err := r.tables.DeleteSourceRange(maps.NewSourceRangeKey(p.id, s)); err != nil {
		return fmt.Errorf("service %s: %w", p.key.service, err)
	}
	r.writes.Sources++
	r.sources--
	return nil
}

// withoutSourceRanges returns the frontends to program for a port whose ranges have no room. Programmed
// load-balancer IPs stay as restricted as they are. Others are not programmed: they would be open
// to all clients.
func (r *reconciler) withoutSourceRanges(p *servicePort, mine []frontendPlan) []frontendPlan {
	kept := make([]frontendPlan, 0, len(mine))
	for _, f := range mine {
		held, there := r.held(p, f.key)
		if f.ranged && !there {
			continue
		}
		f.ranged = f.ranged && held.Flags&maps.SourceRanges != 0
		kept = append(kept, f)
	}
	return kept
}

// deleteSourceRanges deletes the ranges that the port's plan does not want.
func (r *reconciler) deleteSourceRanges(p *servicePort, want portPlan) error {
	kept := p.sources[:0]
	var err error
	for _, s := range p.sources {
		_, stays := slices.BinarySearchFunc(want.sources, s, netip.Prefix.Compare)
		if !stays && err == nil {
			err = r.deleteSourceRange(p, s)
			stays = err != nil
		}
		if stays || err != nil {
			kept = append(kept, s)
		}
	}
	p.sources = kept
	return err
}

// adoptSourceRanges adopts the ranges of known service ids, and leaves the others to prune.
func (r *reconciler) adoptSourceRanges(d *maps.Dump, byID map[uint32]*servicePort) {
	for k := range d.Sources {
		r.sources++
		p, prefix := byID[k.ServiceId], k.Prefix()
		if p == nil || !prefix.IsValid() {
			r.left.sources = append(r.left.sources, k)
			continue
		}
		p.sources = append(p.sources, prefix)
	}
	for _, p := range byID {
		slices.SortFunc(p.sources, netip.Prefix.Compare)
	}
}

// pruneSourceRanges deletes the leftover ranges of service ids that are not in use.
func (r *reconciler) pruneSourceRanges(inUse map[uint32]bool) error {
	var errs []error
	r.left.sources = slices.DeleteFunc(r.left.sources, func(k maps.SourceRangeKey) bool {
		if inUse[k.ServiceId] {
			return false
		}
		err := r.tables.DeleteSourceRange(k)
		if err == nil {
			r.writes.Sources++
			r.sources--
		}
		errs = append(errs, err)
		return err == nil
	})
	return errors.Join(errs...)
}
