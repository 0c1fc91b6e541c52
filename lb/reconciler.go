// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"shunt/maps"
)

// reconciler brings the maps from what they hold to what a plan wants, a service
// at a time. It belongs to the loop's goroutine.
type reconciler struct {
	tables maps.Tables
	log    *zap.Logger
	now    func() time.Time

	ports  map[ServiceName][]*port
	owners map[maps.FrontendKey]*port
	// wishes are what the services ask for, claims who has which address.
	wishes map[ServiceName]*wish
	claims claims
	ledger ledger
	// outer has the services with a load-balancer or external IP, by address.
	outer map[netip.Addr][]ServiceName
	// stripped are services of which another one has taken over a frontend, whose
	// endpoints may have no use any more.
	stripped []ServiceName
	// keeping are services with a frontend that another one has won and not taken over
	// yet.
	keeping map[ServiceName]bool
	// tired: the service under way has waited for another one to take over a frontend.
	tired    bool
	services *idPool
	records  *idPool
	slots    *slotPool
	// entries counts those of map services: frontends but for cluster IPs as a
	// whole, which are flags of their addresses.
	entries int
	// sources counts entries of map sources but for service CIDRs.
	sources int
	// orphans are frontends of an adopted map that no service is known to own yet.
	orphans map[maps.FrontendKey]maps.Service
	left    leftovers
	// nodeAddrs are the addresses of the node in map addrs, with their flags.
	nodeAddrs map[netip.Addr]uint32
	// cidrs are the service CIDRs that the maps hold.
	cidrs    []netip.Prefix
	excepted exceptions
	noLocal  map[NoLocalKey]int
	// listed is what the slices of the service under way list; keptListed: a record stays because
	// of that. listedUntil are the services with such records (listed.go).
	listed      servingByName
	keptListed  bool
	listedUntil map[ServiceName]time.Time
	// problems are what of the services is not served.
	problems *problemTable

	writes maps.Writes
	// stale: a change left sockets behind that speak to nobody.
	stale Stale
}

// Stale says which sockets a change may have left behind.
type Stale struct {
	// TCPBackends were freed: sockets connected to them speak to nobody that serves.
	TCPBackends bool
	// UDPFlows: the same for UDP, or an address leads elsewhere or nowhere now.
	UDPFlows bool
	// UDPFrontends are new: a socket that was connected to one before speaks to
	// an address that nobody has.
	UDPFrontends bool
}

// Any says whether there is anything to look for.
func (s Stale) Any() bool { return s.TCPBackends || s.UDPFlows || s.UDPFrontends }

func newReconciler(tables maps.Tables, log *zap.Logger, now func() time.Time) *reconciler {
	sizes := tables.Sizes()
	return &reconciler{
		tables: tables, log: log, now: now,
		ports:   map[ServiceName][]*port{},
		owners:  map[maps.FrontendKey]*port{},
		wishes:  map[ServiceName]*wish{},
		claims:  newClaims(),
		ledger:  ledger{short: map[ServiceName]bool{}, share: share(sizes)},
		outer:   map[netip.Addr][]ServiceName{},
		keeping: map[ServiceName]bool{},
		// Map names bounds how many are in use; others rest meanwhile.
		services:  newIDPool(2 * sizes.Services),
		records:   newIDPool(sizes.Backends - 1),
		slots:     newSlotPool(sizes.Slots),
		orphans:   map[maps.FrontendKey]maps.Service{},
		noLocal:   map[NoLocalKey]int{},
		nodeAddrs: map[netip.Addr]uint32{},
		excepted:  newExceptions(),
		problems:  newProblemTable(now),

		listedUntil: map[ServiceName]time.Time{},
	}
}

// reconcile makes the maps hold these plans for a service and nothing else of
// it, but for records that its slices bear on (listed.go). After an error what is in the maps works, and the call can be repeated.
//
// Over all ports of the service, what is new comes before what goes: an address
// that moves from one port to another is overwritten in one step, and is never
// without an entry in between.
func (r *reconciler) reconcile(name ServiceName, plans []portPlan, all []*EndpointSlice) error {
	r.beginListed(name, all)
	defer r.endListed(name)
	steps := r.steps(name, plans)
	r.tired = r.keeping[name]
	delete(r.keeping, name)
	err := r.attempt(steps)
	if err != nil && onlyFull(err) { // what went has made room
		err = r.attempt(steps)
	}
	var found []Problem
	for _, s := range steps {
		s.port.wanted = nil
		if s.err != nil {
			found = append(found, writeProblem(s.port.key, s.err))
		}
	}
	r.problems.set(name, byWrites, found)
	r.ports[name] = slices.DeleteFunc(r.ports[name], (*port).gone)
	if len(r.ports[name]) == 0 {
		delete(r.ports, name)
	}
	return err
}

// attempt goes all steps. A full map needs the room of what goes; after any other
// failure that stays until the next attempt.
func (r *reconciler) attempt(steps []portStep) error {
	var waiting []frontendPlan
	for _, s := range steps {
		s.port.wanted = s.want.frontends
	}
	for i := range steps {
		s := &steps[i]
		s.err = r.install(s.port, s.want, s.remove)
		if s.err != nil && !onlyFull(s.err) {
			waiting = append(waiting, s.want.frontends...)
		}
	}
	var errs []error
	for i := range steps {
		s := &steps[i]
		if (s.err == nil || onlyFull(s.err)) && !s.port.keeps(waiting) {
			if err := r.retire(s.port, s.want, s.remove, s.err != nil); err != nil {
				s.err = err
			}
		}
		if s.err != nil {
			errs = append(errs, s.err)
		}
	}
	return errors.Join(errs...)
}

// onlyFull says whether all that failed did so for want of room in a map.
func onlyFull(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(joined.Unwrap(), func(err error) bool { return !onlyFull(err) })
	}
	var full *maps.FullError
	return errors.As(err, &full)
}

// portStep is one port of a service on its way to a plan.
type portStep struct {
	port   *port
	want   portPlan
	remove bool
	err    error
}

// takeStripped returns the services of which others took over frontends, each once.
func (r *reconciler) takeStripped() []ServiceName {
	names := r.stripped
	r.stripped = nil
	slices.SortFunc(names, ServiceName.compare)
	return slices.Compact(names)
}

// install adds what a plan has that a port has not: first what an entry leads
// to, then the entry, so that every look-up is right. Where a map is full it does
// what can be done, so that retire can make room, and gives the error.
func (r *reconciler) install(p *port, want portPlan, remove bool) error {
	if err := r.rename(p, want); err != nil {
		return err
	}
	if !remove && want.key.protocol != 0 && p.id == 0 {
		if err := r.nameID(p); err != nil {
			return err
		}
	}
	r.countNoLocal(p, -1)
	p.noLocalInternal, p.noLocalExternal = want.noLocalInternal, want.noLocalExternal
	r.countNoLocal(p, 1)
	var full []error
	fails := func(err error) bool {
		if err != nil {
			full = append(full, err)
		}
		return err != nil && !onlyFull(err)
	}
	if err := r.addBackends(p, want); fails(err) {
		return err
	}
	noRoom, err := r.addSources(p, want)
	if err != nil {
		return err
	}
	mine := want.frontends
	if fails(noRoom) || noRoom != nil {
		mine = r.withoutSources(p, mine)
	}
	inCluster, inLocal, err := r.placeRanges(p, want, mine)
	if fails(err) {
		return err
	}
	if err := r.setFrontends(p, want, mine, inCluster, inLocal); fails(err) {
		return err
	}
	return errors.Join(full...)
}

// retire removes what the port has that its plan has not: the entry before what
// it leads to.
func (r *reconciler) retire(p *port, want portPlan, remove, full bool) error {
	keeps, err := r.deleteFrontends(p, want)
	if err != nil {
		return err
	}
	// What another service is about to take over stays as it is.
	if !keeps {
		if err := r.deleteSources(p, want); err != nil {
			return err
		}
	}
	r.freeRanges(p)
	if err := r.freeBackends(p, want, remove, full || keeps); err != nil {
		return err
	}
	if remove && p.id != 0 && len(p.frontends) == 0 {
		return r.forgetID(p)
	}
	return nil
}

func (r *reconciler) countNoLocal(p *port, n int) {
	if p.noLocalInternal {
		r.noLocal[NoLocalKey{Family: p.key.family}] += n
	}
	if p.noLocalExternal {
		r.noLocal[NoLocalKey{Family: p.key.family, External: true}] += n
	}
}

func (r *reconciler) nameID(p *port) error {
	id, ok := r.services.get(r.now())
	if !ok {
		return fmt.Errorf("service %s: find an id for port %q: %w", p.key.service, p.key.port,
			r.tables.Sizes().NewFullError(maps.NameNames))
	}
	if err := r.tables.SetName(id, p.key.name()); err != nil {
		r.services.put(id, r.now())
		return err
	}
	r.writes.Names++
	p.id = id
	return nil
}

func (r *reconciler) forgetID(p *port) error {
	if err := r.tables.DeleteName(p.id); err != nil {
		return err
	}
	r.writes.Names++
	r.services.put(p.id, r.now())
	p.id = 0
	return nil
}

// addBackends writes the records that are missing, and adds flags to the others;
// flags that go, go in freeBackends.
func (r *reconciler) addBackends(p *port, want portPlan) (full error) {
	if len(p.backends) == 0 { // room for these and no more: of backends there are most
		p.backends = make([]backend, 0, len(want.backends))
	}
	for _, w := range want.backends {
		i, there := p.backend(w.addr)
		if there {
			if err := r.setFlags(p, &p.backends[i], withFlags(p.backends[i].flags, w.flags)); err != nil {
				return err
			}
			continue
		}
		if w.flags&maps.Unready != 0 {
			continue // see unready.go
		}
		id, ok := r.records.get(r.now())
		if !ok {
			if full == nil {
				full = fmt.Errorf("service %s: add endpoint %s: %w", p.key.service, w.addr,
					r.tables.Sizes().NewFullError(maps.NameBackends))
				if err := r.dropUnready(); err != nil {
					return err
				}
			}
			continue
		}
		rec := maps.NewBackend(w.addr, uint8(p.key.protocol), w.flags, p.id)
		if err := r.tables.SetBackend(id, rec); err != nil {
			r.records.put(id, r.now())
			return fmt.Errorf("service %s: %w", p.key.service, err)
		}
		r.writes.Backends++
		p.backends = slices.Insert(p.backends, i, backend{w.addr, id, w.flags})
	}
	return full
}

func (r *reconciler) setFlags(p *port, b *backend, flags uint8) error {
	if b.flags == flags {
		return nil
	}
	rec := maps.NewBackend(b.addr, uint8(p.key.protocol), flags, p.id)
	if err := r.tables.SetBackend(b.id, rec); err != nil {
		return fmt.Errorf("service %s: %w", p.key.service, err)
	}
	r.writes.Backends++
	b.flags = flags
	return nil
}

// freeBackends frees the records that are not wanted, and takes flags away from
// the others. Both come after the frontends have changed: until then a client
// may be sent there. careful: some frontends still lead where they led before.
func (r *reconciler) freeBackends(p *port, want portPlan, remove, careful bool) error {
	var named map[uint32]bool
	if careful {
		named = p.namedIDs()
	}
	return r.keepBackends(p, func(b *backend) (bool, error) {
		at, wanted := slices.BinarySearchFunc(want.backends, *b, func(w backendPlan, b backend) int {
			return w.addr.Compare(b.addr)
		})
		if wanted {
			flags := want.backends[at].flags
			if named[b.id] {
				flags = withFlags(0, flags)
			}
			return true, r.setFlags(p, b, flags)
		}
		if named[b.id] || remove {
			return named[b.id], nil
		}
		return r.keepListed(p, b)
	})
}
