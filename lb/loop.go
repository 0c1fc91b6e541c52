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
	// pending is what failed and is tried again.
	pending changes
	retries int
	checks  healthChecks
	// ranged are the services with source ranges, which the node's addresses bear
	// on; addrs are those that they were last planned with.
	ranged map[ServiceName]bool
	addrs  []netip.Addr
	// cidrs are the service CIDRs that external addresses were last planned with.
	cidrs []netip.Prefix

	// mu is taken before the Store's.
	mu     sync.Mutex
	status Status
	// working is when the oldest change of the reconcile under way, or of pending,
	// was taken; workingOn counts those changes.
	working   time.Time
	workingOn changeCount
}

// The wait before what failed is tried again doubles from retryFirst to retryMax.
const (
	retryFirst = grace
	retryMax   = 30 * time.Second
)

// NewLoop makes a loop that has not looked at the maps yet.
func NewLoop(o LoopOptions) *Loop {
	return &Loop{
		o: o, r: newReconciler(o.Tables, o.Log, o.Now),
		synced: make(chan struct{}),
		checks: healthChecks{},
		ranged: map[ServiceName]bool{},
	}
}

// Adopt takes over what the maps hold. Call it once, before Run.
func (l *Loop) Adopt() (Adopted, error) {
	dump, err := l.o.Tables.Dump()
	if err != nil {
		return Adopted{}, fmt.Errorf("read what an earlier daemon left in the maps: %w", err)
	}
	return l.r.adopt(dump), nil
}

// Synced is closed when the first reconcile is done.
func (l *Loop) Synced() <-chan struct{} { return l.synced }

// Run reconciles until the context ends. It returns nil then.
func (l *Loop) Run(ctx context.Context) error {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	retry.Stop() // armed by a failure only: nothing may begin before the poke
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.o.Store.poke:
			l.retries = 0 // the change may be what was waited for
		case <-retry.C:
		}
		first := !l.isSynced
		l.step()
		if first {
			if err := l.onSynced(ctx); err != nil {
				return err
			}
		}
		retry.Stop()
		if !l.pending.empty() {
			retry.Reset(l.backoff())
		}
	}
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
	l.working = l.pending.since
	return nil
}

func (l *Loop) backoff() time.Duration {
	wait := retryFirst << min(l.retries, 10)
	return min(wait, retryMax)
}

// step is one reconcile of everything that changed or failed before.
func (l *Loop) step() {
	report := Report{Started: l.o.Now()}
	todo := l.begin()
	first := !l.isSynced
	report.Full = first || todo.all
	around := l.o.Store.surroundings()
	at := l.place(around, &todo)

	failed := changes{since: todo.since}
	errs := l.programAll(todo, &failed, at, &report)
	if around.addrs != nil && (todo.addrs || first) {
		if err := l.r.reconcileAddrs(l.taking(around)); err != nil {
			errs = append(errs, err)
			failed.addrs = true
		}
	}
	// After services: of a new one's address nobody shall hear that it is nobody's.
	if around.cidrs != nil && (todo.cidrs || first) {
		if err := l.r.reconcileCIDRs(at.cidrs); err != nil {
			errs = append(errs, err)
			failed.cidrs = true
		}
	}
	// Whoever failed may still have a use for what is left, but not if what it
	// needs is room.
	if !l.pruned && !slices.ContainsFunc(errs, func(err error) bool { return !onlyFull(err) }) {
		err := l.r.prune()
		errs = append(errs, err)
		l.pruned = err == nil
		failed.addrs = failed.addrs || err != nil // to come back
	}
	report.Failed = len(failed.services) + len(l.r.ledger.short)
	report.Err = firstOf(errs)
	l.end(failed, report, around.node)
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
