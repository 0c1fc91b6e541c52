// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"shunt/maps"
)

// LoopOptions is what a Loop needs; all fields are required but those that
// say what nil means.
type LoopOptions struct {
	Store  *Store
	Tables maps.Tables
	Log    *zap.Logger
	Now    func() time.Time
	// NodeName is this node's, for local endpoints and node hints.
	NodeName  string
	NodePorts NodePortAddresses
	// MaxFrontends is how many frontends one Service may have; 0: any number.
	MaxFrontends int
	// Observer hears of every reconcile; nil: nobody does.
	Observer Observer
	// OnSynced runs on the loop's goroutine when the first reconcile is done, and
	// may write to the maps; its error ends Run. nil: nothing is to be done.
	OnSynced func(context.Context) error
	// OnStale hears when a change left sockets behind that speak to nobody; it
	// must not block. nil: nobody does.
	OnStale func(Stale)
	// OnSourceRanges is called with the load-balancer IPs that source ranges bind, sorted:
	// when the first reconcile begins, before one is bound, and after one is no more. The
	// reconcile waits for it. What it is given is not written to again. nil: it is not wanted.
	OnSourceRanges func([]netip.Addr)
	// OnProblem is called for each problem of a Service when it is found first; it
	// must not block. nil: it is not wanted.
	OnProblem func(Problem)
}

// Loop is the one writer of the maps: it takes changes from the Store, the first
// at once and what comes meanwhile together, and reconciles the services they
// touch.
type Loop struct {
	o        LoopOptions
	r        *reconciler
	synced   chan struct{}
	isSynced bool
	pruned   bool
	// failed is what is tried again.
	failed failures
	faults *faultLog
	checks healthChecks
	// ranged are the services with source ranges, which the node's addresses bear
	// on; addrs are those that they were last planned with.
	ranged map[ServiceName]bool
	addrs  []netip.Addr
	// rangedChanged: services of ranged, or their addresses, may be others than when bound
	// was made, which are the addresses that OnSourceRanges heard last.
	rangedChanged bool
	bound         []netip.Addr
	// cidrs are the service CIDRs that external addresses were last planned with.
	cidrs []netip.Prefix
	// reserved is what no service may have; refused are those that ask for it.
	reserved *reservations
	refused  map[ServiceName]bool
	// around is what was known beside services when this step began; addrsVersion
	// counts changes of the node's addresses and of those that take node ports.
	around       surroundings
	addrsVersion int

	// mu is taken before the Store's.
	mu     sync.Mutex
	status Status
	// working is when the oldest change of the reconcile under way was taken, zero
	// where there is none; workingOn counts those changes and the ones that failed.
	working   time.Time
	workingOn changeCount
}

// NewLoop makes a loop that has not looked at the maps yet.
func NewLoop(o LoopOptions) *Loop {
	return &Loop{
		o: o, r: newReconciler(o.Tables, o.Log, o.Now),
		synced:  make(chan struct{}),
		failed:  newFailures(),
		faults:  newFaultLog(o.Log),
		checks:  healthChecks{},
		ranged:  map[ServiceName]bool{},
		refused: map[ServiceName]bool{},
	}
}

// Adopt takes over what the maps hold. Call it once, before Run.
func (l *Loop) Adopt() (Adopted, error) {
	dump, err := l.o.Tables.Dump()
	if err != nil {
		return Adopted{}, fmt.Errorf("read what an earlier daemon left in the maps: %w", err)
	}
	adopted := l.r.adopt(dump)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.NodePortAddrs = l.r.nodePortAddrs()
	return adopted, nil
}

// Synced is closed when the first reconcile is done.
func (l *Loop) Synced() <-chan struct{} { return l.synced }

// Run reconciles until the context ends. It returns nil then.
func (l *Loop) Run(ctx context.Context) error {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	retry.Stop() // armed by a failure only: nothing may begin before the poke
	for {
		var retries int
		select {
		case <-ctx.Done():
			return nil
		case <-l.o.Store.poke:
			retries = 0
		case <-retry.C:
			retries = retriesAtOnce
		}
		first := !l.isSynced
		l.step(l.o.Now(), retries)
		if first {
			if err := l.onSynced(ctx); err != nil {
				return err
			}
		}
		retry.Stop()
		if due, any := l.next(); any {
			retry.Reset(due.Sub(l.o.Now()))
		}
	}
}

// next returns when something is to be done that nobody asks for, and false where nothing is.
func (l *Loop) next() (time.Time, bool) {
	due, fails := l.failed.next()
	if lapses, any := l.r.lapses(); any && (!fails || lapses.Before(due)) {
		return lapses, true
	}
	return due, fails
}

// onSynced runs the hook of that name. Not before it has run is the status synced:
// whoever asks for our health must not hear that services work a moment too early.
func (l *Loop) onSynced(ctx context.Context) error {
	if l.o.OnSynced != nil {
		if err := l.o.OnSynced(ctx); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Synced = true
	l.working = time.Time{}
	return nil
}

// step is one reconcile of everything that changed, and of those failures that are due
// at a time, so many at most.
func (l *Loop) step(until time.Time, retries int) {
	report := Report{Started: l.o.Now()}
	todo := l.begin(until, retries)
	l.r.takeLapsed(&todo)
	first := !l.isSynced
	report.Full = first || todo.all
	around := l.o.Store.surroundings()
	at := l.place(around, &todo)
	room := l.r.room()

	errs := l.programAll(todo, at, &report)
	errs = append(errs, l.surround(around, todo, at)...)
	report.Failed += len(l.r.ledger.short)
	report.Err = firstOf(errs)
	if l.r.room().moreThan(room) {
		l.failed.roomIsFree(l.o.Now())
	}
	l.end(report, around.node)
}

// surround brings into the maps what is not a service's.
func (l *Loop) surround(around surroundings, todo changes, at place) (errs []error) {
	first := !l.isSynced
	do := func(what objectKind, err error) {
		l.result(object{what: what}, change{}, err)
		errs = append(errs, err)
	}
	if around.addrs != nil && (todo.addrs || first) {
		do(theNodeAddrs, l.r.reconcileAddrs(l.taking(around)))
	}
	// After services: of a new one's address nobody shall hear that it is nobody's.
	if around.cidrs != nil && (todo.cidrs || first) || l.r.excepted.changed {
		do(theServiceCIDRs, l.r.reconcileCIDRs(at.cidrs))
	}
	if !l.pruned && (todo.leftovers || first) {
		done, err := l.r.prune(l.wantedByFailing())
		if l.pruned = done; err == nil && !done {
			err = errWanted
		}
		l.result(object{what: theLeftovers}, change{}, err)
		if !errors.Is(err, errWanted) {
			errs = append(errs, err)
		}
	}
	return errs
}

// errWanted is why leftovers are looked at again that were left on purpose.
var errWanted = errors.New("services that can't be programmed yet may want them")

// result notes what became of an attempt at an object. It returns the triggers of
// the changes that are now in the maps.
func (l *Loop) result(o object, c change, err error) []time.Time {
	changed := c.service+c.endpoints > 0
	keeps := o.what == aService && l.r.keeping[o.service]
	if err == nil && !keeps {
		lacked, attempts := l.failed.done(o)
		l.faults.done(o, attempts)
		lacked.add(c)
		return lacked.triggers
	}
	x := l.failed.failed(o, c, changed, err, err != nil && onlyFull(err), l.o.Now())
	// No error: a frontend of it goes to another service, which has failed.
	if err != nil && !errors.Is(err, errWanted) {
		l.faults.failed(x, l.o.Now())
	}
	return nil
}

// wantedByFailing returns the frontends that services which could not be programmed
// may still find in the maps.
func (l *Loop) wantedByFailing() map[maps.FrontendKey]bool {
	wanted := map[maps.FrontendKey]bool{}
	for o := range l.failed.all {
		if w := l.r.wishes[o.service]; w != nil {
			w.eachClaim(func(c claim) { wanted[c.frontend.key] = true })
		}
	}
	return wanted
}

// mostErrors is how many errors of one reconcile are told in full: a full map
// fails every service that is left.
const mostErrors = 3

// firstOf joins the first errors and counts the rest.
func firstOf(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if more := len(errs) - mostErrors; more > 0 {
		errs = append(errs[:mostErrors:mostErrors], fmt.Errorf("and %d more", more))
	}
	return errors.Join(errs...)
}

// names gives the services to look at, those that are gone first: they may hold
// addresses and room that others need.
func (l *Loop) names(todo changes, full bool) []ServiceName {
	var gone, there []ServiceName
	if full {
		services := l.o.Store.serviceNames()
		for name := range l.r.ports {
			if services[name] == nil {
				gone = append(gone, name)
			}
		}
		for name := range l.r.wishes { // one may have nothing in the maps
			if services[name] == nil && len(l.r.ports[name]) == 0 {
				gone = append(gone, name)
			}
		}
		for name := range services {
			there = append(there, name)
		}
	} else {
		for name := range todo.services {
			if svc, _ := l.o.Store.get(name); svc == nil {
				gone = append(gone, name)
			} else {
				there = append(there, name)
			}
		}
	}
	slices.SortFunc(gone, ServiceName.compare)
	slices.SortFunc(there, ServiceName.compare)
	return append(gone, there...)
}
