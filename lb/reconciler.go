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

// reconciler writes the difference between what a plan wants and what the maps hold, one service at
// a time. Only the loop's goroutine uses it.
//
//	wanted: portPlan             held: servicePort            adopted: orphans, left
//	what the objects ask for     what the maps hold for it    what an earlier daemon left
//	          |                             |                             |
//	          +------- install (add) -------+<----- taken by key ---------+
//	          +------- retire (remove) -----+                             |
//	                                       removed by prune: in the first reconcile after the Services,
//	                                       and later where a failing Service may want them
//
// A change is written in the order of install and then of retire, so that a look-up finds complete
// data at each moment: the name of the service id, backends, source ranges, slots, frontends; then
// it removes frontends, source ranges, slots, backends and the name.
type reconciler struct {
	tables maps.Tables
	log    *zap.Logger
	now    func() time.Time

	ports  map[ServiceName][]*servicePort
	owners map[maps.FrontendKey]*servicePort
	// wishes are what the services ask for. claims decides which service gets which frontend.
	wishes map[ServiceName]*wish
	claims claims
	ledger ledger
	// outer has the services that have an address as a load-balancer or external IP.
	outer map[netip.Addr][]ServiceName
	// stripped are services that lost a frontend entry to another service. They are reconciled
	// again: their endpoints may be unused now.
	stripped []ServiceName
	// keeping are services that still have the entry of a frontend which another service has won
	// but not overwritten yet.
	keeping map[ServiceName]bool
	// tired: the service under way has already waited once for another service to overwrite an
	// entry. Now it deletes such entries.
	tired    bool
	services *idPool
	records  *idPool
	slots    *slotPool
	// entries counts the entries of map services. Cluster IPs as a whole (port 0) are not among
	// them: they are flags of an address in map addrs.
	entries int
	// sources counts the source ranges in map sources, without service CIDRs and exceptions.
	sources int
	// orphans are frontends of adopted maps that are not yet known to belong to a service port.
	orphans map[maps.FrontendKey]maps.Frontend
	left    leftovers
	// nodeAddrs are the addresses of the node in map addrs, with their flags.
	nodeAddrs map[netip.Addr]uint32
	// cidrs are the service CIDRs that the maps hold.
	cidrs    []netip.Prefix
	excepted exceptions
	noLocal  map[NoLocalKey]int
	// listed is what the slices of the service under way list. keptListed: a backend stays because
	// of that. listedUntil has the services with such backends, and until when they stay
	// (listed.go).
	listed      servingByName
	keptListed  bool
	listedUntil map[ServiceName]time.Time
	// problems holds what the services ask for and do not get.
	problems *problemTable

	writes maps.Writes
	// stale says which sockets the reconcile may have left with a peer that no longer serves them.
	stale Stale
}

// Stale says which sockets a change may have left with a peer that no longer serves them.
type Stale struct {
	// TCPBackends: backends of TCP were freed. Sockets may still be connected to them.
	TCPBackends bool
	// UDPFlows: backends of UDP were freed, or a UDP frontend was deleted or moved to another
	// service port, or an address of the node no longer takes node ports.
	UDPFlows bool
	// UDPFrontends: frontends of UDP are new. A socket that connected to such an address earlier is
	// not translated.
	UDPFrontends bool
}

// Any reports whether there may be stale sockets.
func (s Stale) Any() bool { return s.TCPBackends || s.UDPFlows || s.UDPFrontends }

func newReconciler(tables maps.Tables, log *zap.Logger, now func() time.Time) *reconciler {
	sizes := tables.Sizes()
	return &reconciler{
		tables: tables, log: log, now: now,
		ports:   map[ServiceName][]*servicePort{},
		owners:  map[maps.FrontendKey]*servicePort{},
		wishes:  map[ServiceName]*wish{},
		claims:  newClaims(),
		ledger:  ledger{short: map[ServiceName]bool{}, share: share(sizes)},
		outer:   map[netip.Addr][]ServiceName{},
		keeping: map[ServiceName]bool{},
		// Twice as many ids as map names holds: returned ids rest before they are used again.
		services:  newIDPool(2 * sizes.Services),
		records:   newIDPool(sizes.Backends - 1),
		slots:     newSlotPool(sizes.Slots),
		orphans:   map[maps.FrontendKey]maps.Frontend{},
		noLocal:   map[NoLocalKey]int{},
		nodeAddrs: map[netip.Addr]uint32{},
		excepted:  newExceptions(),
		problems:  newProblemTable(now),

		listedUntil: map[ServiceName]time.Time{},
	}
}

// reconcile makes the maps hold these plans of a service and nothing else of it, except backends
// that its slices list under another port name (listed.go). After an error the maps are consistent,
// and the call can be repeated.
//
// Over all ports of the service, additions come before removals: an address that moves from one
// port to another is overwritten in one update, and always has an entry.
func (r *reconciler) reconcile(name ServiceName, plans []portPlan, all []*EndpointSlice) error {
	r.beginListed(name, all)
	defer r.endListed(name)
	steps := r.steps(name, plans)
	r.tired = r.keeping[name]
	delete(r.keeping, name)
	err := r.attempt(steps)
	if err != nil && onlyFull(err) { // the removals have made room
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
	r.ports[name] = slices.DeleteFunc(r.ports[name], (*servicePort).gone)
	if len(r.ports[name]) == 0 {
		delete(r.ports, name)
	}
	return err
}

// attempt does all steps once: first install for each port, then retire. When a map is full, retire
// still runs, since it makes room. After any other error of install, that port retires nothing, and
// neither does a port that has a frontend which a failed port is to get.
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

// onlyFull reports whether an error consists of *maps.FullError only: a map was full.
func onlyFull(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(joined.Unwrap(), func(err error) bool { return !onlyFull(err) })
	}
	var full *maps.FullError
	return errors.As(err, &full)
}

// portStep is a port of a service, the plan for it, and the result.
type portStep struct {
	port   *servicePort
	want   portPlan
	remove bool
	err    error
}

// takeStripped returns the services in stripped, each once, and clears the list.
func (r *reconciler) takeStripped() []ServiceName {
	names := r.stripped
	r.stripped = nil
	slices.SortFunc(names, ServiceName.compare)
	return slices.Compact(names)
}

// install adds what the plan has and the port has not. It writes what an entry refers to before the
// entry, so that every lookup finds complete data. Where a map is full it does the rest, so that
// retire can make room, and returns the error.
func (r *reconciler) install(p *servicePort, want portPlan, remove bool) error {
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
	noRoom, err := r.addSourceRanges(p, want)
	if err != nil {
		return err
	}
	mine := want.frontends
	if fails(noRoom) || noRoom != nil {
		mine = r.withoutSourceRanges(p, mine)
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

// retire removes what the port has and its plan has not: the entry before what it refers to. full:
// install failed for want of room.
func (r *reconciler) retire(p *servicePort, want portPlan, remove, full bool) error {
	keeps, err := r.deleteFrontends(p, want)
	if err != nil {
		return err
	}
	// An entry that another service will overwrite keeps its source ranges until then.
	if !keeps {
		if err := r.deleteSourceRanges(p, want); err != nil {
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

func (r *reconciler) countNoLocal(p *servicePort, n int) {
	if p.noLocalInternal {
		r.noLocal[NoLocalKey{Family: p.key.family}] += n
	}
	if p.noLocalExternal {
		r.noLocal[NoLocalKey{Family: p.key.family, External: true}] += n
	}
}

func (r *reconciler) nameID(p *servicePort) error {
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

func (r *reconciler) forgetID(p *servicePort) error {
	if err := r.tables.DeleteName(p.id); err != nil {
		return err
	}
	r.writes.Names++
	r.services.put(p.id, r.now())
	p.id = 0
	return nil
}

// addBackends writes the missing backends, and adds flags to the others. freeBackends removes
// flags. full is the error for a full map; the backends that fit are written.
func (r *reconciler) addBackends(p *servicePort, want portPlan) (full error) {
	if len(p.backends) == 0 { // exact capacity: backends take most of the memory
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

func (r *reconciler) setFlags(p *servicePort, b *backend, flags uint8) error {
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

// freeBackends frees the backends that are not wanted, and removes flags from the others. It runs
// after the frontends have changed: until then programs may select such a backend. careful: some
// frontends may still use their old slot ranges, and backends in these stay.
func (r *reconciler) freeBackends(p *servicePort, want portPlan, remove, careful bool) error {
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
