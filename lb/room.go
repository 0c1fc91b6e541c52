// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"slices"

	"shunt/maps"
)

// Room in the maps. While everything that services ask for fits, only sums are kept. When a map is
// too small, room is granted by rank over all services: cluster IPs first, then node ports,
// load-balancer IPs, external IPs; within a rank the older service comes first. A frontend that
// does not fit is left out, and smaller ones after it may still fit. The outcome follows from the
// wishes alone.
//
// Each service has a share of each map in that order. What it asks for beyond the share comes after
// everything that other services ask for within theirs. So thousands of endpoints of one service
// are served where there is room, and take no room from others where there is not.

// resource is something of which the maps have a fixed number.
type resource uint8

const (
	ofEntries resource = iota // map services
	ofNames                   // map names, and service ids
	ofRecords                 // map backends
	ofSlots                   // map slots, in blocks
	ofSources                 // map sources
	ofAddrs                   // map addrs, without the room kept for the node's addresses
	resources = iota
)

// room is an amount of each resource.
type room [resources]int32

// shareOf: the share of one service is one shareOf-th of each map.
const shareOf = 16

// share returns what one service may take before others.
func share(s maps.Sizes) room {
	limit := limitOf(s, 0)
	for i := range limit {
		limit[i] /= shareOf
	}
	return limit
}

func (a *room) add(b room) {
	for i := range a {
		a[i] += b[i]
	}
}

func (a *room) sub(b room) {
	for i := range a {
		a[i] -= b[i]
	}
}

// beyond returns the first resource that exceeds the limit.
func (a room) beyond(limit room) (resource, bool) {
	for i := range a {
		if a[i] > limit[i] {
			return resource(i), true
		}
	}
	return 0, false
}

// limitOf returns the room for services in the maps. cidrs is how many entries of map sources are
// kept for service CIDRs and exceptions from them.
func limitOf(s maps.Sizes, cidrs int) room {
	return room{ofEntries: int32(s.Services), ofNames: int32(s.Services), ofRecords: int32(s.Backends) - 1,
		ofSlots: int32(s.Slots), ofSources: max(int32(s.Sources)-int32(cidrs), 0), ofAddrs: int32(s.Services)}
}

// fullError returns the error for a resource that has run out.
func (i resource) fullError(s maps.Sizes) *maps.FullError {
	return s.NewFullError([resources]string{maps.NameServices, maps.NameNames, maps.NameBackends, maps.NameSlots,
		maps.NameSources, maps.NameAddrs}[i])
}

// portNeed is what a service port needs, whichever frontends it has.
type portNeed struct {
	records, sources int32
	// cluster and local are the slots of the two sets. oneSet: both sets are equal.
	cluster, local int32
	oneSet         bool
}

func needOf(plan *portPlan) portNeed {
	n := portNeed{sources: int32(len(plan.sources)), oneSet: true}
	for _, b := range plan.backends {
		if b.flags&maps.Unready != 0 {
			continue // keeps its backend only while the room is not needed
		}
		n.records++
		inCluster, inLocal := b.flags&maps.ClusterSet != 0, b.flags&maps.LocalSet != 0
		if inCluster {
			n.cluster++
		}
		if inLocal {
			n.local++
		}
		n.oneSet = n.oneSet && inCluster == inLocal
	}
	block := func(n int32) int32 {
		if n == 0 {
			return 0
		}
		return int32(orderFor(uint32(n)).size())
	}
	n.cluster, n.local = block(n.cluster), block(n.local)
	return n
}

// portHas says which parts of a port's need are already counted.
type portHas struct{ base, cluster, local, sources bool }

// more returns what a frontend needs beyond what is counted for its port.
func (p *portWish) more(f *frontendWish, has portHas) (room, portHas) {
	var r room
	if p.of.notServed {
		return r, has // only a claim, without an entry
	}
	if f.key.Port == 0 {
		r[ofAddrs] = 1
		return r, has
	}
	r[ofEntries] = 1
	if rankOf(f.kind) >= rankLoadBalancerIP { // those of cluster IPs are counted with port 0
		r[ofAddrs] = 1
	}
	if !has.base {
		r[ofNames], r[ofRecords] = 1, p.need.records
		has.base = true
	}
	counted := p.need.oneSet && (has.cluster || has.local)
	if f.usesCluster && !has.cluster && !counted {
		r[ofSlots] += p.need.cluster
		counted = p.need.oneSet
	}
	if f.usesLocal && !has.local && !counted {
		r[ofSlots] += p.need.local
	}
	has.cluster, has.local = has.cluster || f.usesCluster, has.local || f.usesLocal
	if f.ranged && !has.sources {
		r[ofSources] = p.need.sources
		has.sources = true
	}
	return r, has
}

// sum returns the room that a service's won frontends need, up to each level, and sets the level of
// each frontend.
func (w *wish) sum(share room) (total [levels]room) {
	for _, p := range w.ports {
		var has portHas
		for i := range p.frontends { // sorted by rank
			f := &p.frontends[i]
			if f.level = uint8(rankOf(f.kind)); f.won {
				var more room
				more, has = p.more(f, has)
				for l := f.level; l < levels; l++ {
					total[l].add(more)
				}
			}
		}
	}
	if _, over := total[levels-1].beyond(share); over {
		return w.sumBeyond(share)
	}
	return total
}

// sumBeyond is sum for a service that asks for more than its share.
func (w *wish) sumBeyond(share room) (total [levels]room) {
	for _, p := range w.ports {
		p.has = portHas{}
	}
	var used room
	for l := range uint8(levels) {
		for _, p := range w.ports {
			for i := range p.frontends {
				f := &p.frontends[i]
				if f.level != l || !f.won {
					continue
				}
				more, has := p.more(f, p.has)
				sum := used
				sum.add(more)
				if _, over := sum.beyond(share); over && l < ranks {
					f.level += ranks
					continue
				}
				used, p.has = sum, has
			}
		}
		total[l] = used
	}
	return total
}

// ledger sums what all services have won, and knows which services lack room.
type ledger struct {
	total [levels]room
	limit room
	// share is what one service may take before others.
	share room
	// order has all wishes in the order in which they are served; nil until room is short for the
	// first time.
	order []*wish
	// short are the services that lack room for a frontend.
	short map[ServiceName]bool
	// err is the result of shortErr, nil until it is needed.
	err error
	// changed: a wish or the limit has changed since room was last granted.
	changed bool
}

// enter adds a wish to the sums, and leave subtracts it.
func (l *ledger) enter(w *wish) {
	l.changed = true
	for r := range l.total {
		l.total[r].add(w.total[r])
	}
	if l.order != nil {
		at, _ := slices.BinarySearchFunc(l.order, w, (*wish).compare)
		l.order = slices.Insert(l.order, at, w)
	}
}

func (l *ledger) leave(w *wish) {
	l.changed = true
	for r := range l.total {
		l.total[r].sub(w.total[r])
	}
	if at, there := slices.BinarySearchFunc(l.order, w, (*wish).compare); there {
		l.order = slices.Delete(l.order, at, at+1)
	}
	delete(l.short, w.name)
}

// update counts a wish again.
func (l *ledger) update(w *wish) {
	w.uncounted = false
	l.changed = true // also if the sum is the same: other frontends may fit
	if total := w.sum(l.share); total != w.total {
		for r := range l.total {
			l.total[r].sub(w.total[r])
			l.total[r].add(total[r])
		}
		w.total = total
	}
}

// give grants room to all wishes. It returns the services that lost frontends, and those that only
// got some.
func (l *ledger) give(wishes map[ServiceName]*wish) (lost, got []ServiceName) {
	first := uint8(0) // the first level that does not fit as a whole
	for ; first < levels; first++ {
		if _, over := l.total[first].beyond(l.limit); over {
			break
		}
	}
	if !l.changed || first == levels && len(l.short) == 0 {
		return nil, nil
	}
	l.changed, l.err = false, nil
	if l.order == nil {
		l.order = make([]*wish, 0, len(wishes))
		for _, w := range wishes {
			l.order = append(l.order, w)
		}
		slices.SortFunc(l.order, (*wish).compare)
	}
	var used room
	if first > 0 {
		used = l.total[first-1]
	}
	var scan []*wish // wishes with frontends of these levels, or that lacked room
	for _, w := range l.order {
		if l.short[w.name] || first < levels && (first == 0 || w.total[levels-1] != w.total[first-1]) {
			scan = append(scan, w)
			w.begin(first)
		}
	}
	for level := first; level < levels; level++ {
		for _, w := range scan {
			w.give(level, &used, l.limit)
		}
	}
	for _, w := range scan {
		loses, gets, short := w.finish()
		switch {
		case loses:
			lost = append(lost, w.name)
		case gets:
			got = append(got, w.name)
		}
		if delete(l.short, w.name); short {
			l.short[w.name] = true
		}
	}
	return lost, got
}

// shortErr returns an error that names services which lack room: the first ones by name, and how
// many more.
func (r *reconciler) shortErr() error {
	if len(r.ledger.short) == 0 {
		return nil
	}
	if r.ledger.err != nil {
		return r.ledger.err
	}
	var names []ServiceName // the first by name: there may be thousands
	for name := range r.ledger.short {
		at, _ := slices.BinarySearchFunc(names, name, ServiceName.compare)
		if at < maps.MostErrors {
			names = slices.Insert(names[:min(len(names), maps.MostErrors-1)], at, name)
		}
	}
	var errs []error
	for _, name := range names {
		for _, p := range r.wishes[name].ports {
			i := slices.IndexFunc(p.frontends, func(f frontendWish) bool { return f.won && !f.fits })
			if i >= 0 {
				errs = append(errs, fmt.Errorf("service %s: %s %s: %w", name, p.frontends[i].kind, p.frontends[i].key,
					p.frontends[i].lacks.fullError(r.tables.Sizes())))
				break
			}
		}
	}
	r.ledger.err = maps.FirstErrors(errs, len(r.ledger.short)-len(names))
	return r.ledger.err
}

// begin grants a wish all levels below first, which fit as a whole.
func (w *wish) begin(first uint8) {
	for _, p := range w.ports {
		p.has = portHas{}
		for i := range p.frontends {
			f := &p.frontends[i]
			f.fitted, f.fits = f.fits, f.level < first
			if f.fits && f.won {
				_, p.has = p.more(f, p.has)
			}
		}
	}
}

// give grants a wish's won frontends of a level, as far as there is room.
func (w *wish) give(level uint8, used *room, limit room) {
	for _, p := range w.ports {
		for i := range p.frontends {
			f := &p.frontends[i]
			if f.level != level || !f.won {
				continue
			}
			more, has := p.more(f, p.has)
			sum := *used
			sum.add(more)
			if lacks, over := sum.beyond(limit); over {
				f.lacks = lacks
				continue
			}
			*used, p.has, f.fits = sum, has, true
		}
	}
}

// finish reports whether a wish lost frontends, whether it got some, and whether it lacks room for
// some.
func (w *wish) finish() (loses, gets, short bool) {
	for _, p := range w.ports {
		for i := range p.frontends {
			f := &p.frontends[i]
			if !f.won {
				f.fits = true // tried again when it wins
			}
			loses = loses || f.won && f.fitted && !f.fits
			gets = gets || f.won && f.fits && !f.fitted
			short = short || f.won && !f.fits
		}
	}
	return loses, gets, short
}
