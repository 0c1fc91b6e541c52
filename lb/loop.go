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

// LoopOptions is what a Loop needs. All fields are required, except those that say what nil or 0
// means.
type LoopOptions struct {
	Store  *Store
	Tables maps.Tables
	Log    *zap.Logger
	Now    func() time.Time
	// NodeName is the name of this node, for local endpoints and node hints.
	NodeName  string
	NodePorts NodePortAddresses
	// MaxFrontends is how many frontends one Service may have; 0: no limit.
	MaxFrontends int
	// Observer is called after every reconcile; nil: no calls.
	Observer Observer
	// OnSynced runs on the loop's goroutine after the first reconcile, and may write to the maps.
	// Its error ends Run. nil: no call.
	OnSynced func(context.Context) error
	// OnStale is called after a reconcile that may have left sockets with a peer that no longer
	// serves them. It must not block. nil: no call.
	OnStale func(Stale)
	// OnSourceRanges is called with the load-balancer IPs that source ranges restrict, sorted: at
	// the start of the first reconcile, before an address becomes restricted, and after one no
	// longer is. The reconcile waits for it. The slice is not modified later. nil: no call.
	OnSourceRanges func([]netip.Addr)
	// OnProblem is called for each new problem of a Service. It must not block. nil: no call.
	OnProblem func(Problem)
}

// Loop is the only writer of the entries for Services and for node ports in the maps. It takes
// changes from the Store: the first one at once, and those that arrive during a reconcile together
// afterwards. It reconciles the services that these affect.
type Loop struct {
	o        LoopOptions
	r        *reconciler
	synced   chan struct{}
	isSynced bool
	pruned   bool
	// failed are the objects that are tried again.
	failed failures
	faults *faultLog
	checks healthChecks
	// ranged are the services with source ranges. Their plans depend on the node's addresses; addrs
	// are those that they were last planned with.
	ranged map[ServiceName]bool
	addrs  []netip.Addr
	// ownIPs are the cluster IPs that a device of the node has, by service. ownChanged: map addrs
	// may not fit to them.
	ownIPs     map[ServiceName][]netip.Addr
	ownChanged bool
	// rangedChanged: ranged, or the addresses of these services, may have changed since bound was
	// made. bound is what OnSourceRanges was last called with.
	rangedChanged bool
	bound         []netip.Addr
	// cidrs are the service CIDRs that external addresses were last planned with.
	cidrs []netip.Prefix
	// reserved is what no service may have. refused are the services that ask for it, or for an
	// external address inside a service CIDR.
	reserved *reservations
	refused  map[ServiceName]bool
	// around is what the Store knew beside services when this reconcile began. addrsVersion counts
	// changes of the node's addresses and of the set that takes node ports.
	around       surroundings
	addrsVersion int

	// mu is locked before the mutex of the Store.
	mu     sync.Mutex
	status Status
	// working is when the oldest change of the reconcile under way was taken, zero where there is
	// none. workingOn counts its changes and those of failed objects.
	working   time.Time
	workingOn changeCount
}

// NewLoop returns a Loop. It does not read the maps: Adopt does.
func NewLoop(o LoopOptions) *Loop {
	return &Loop{
		o: o, r: newReconciler(o.Tables, o.Log, o.Now),
		synced:  make(chan struct{}),
		failed:  newFailures(),
		faults:  newFaultLog(o.Log),
		checks:  healthChecks{},
		ranged:  map[ServiceName]bool{},
		ownIPs:  map[ServiceName][]netip.Addr{},
		refused: map[ServiceName]bool{},
	}
}

// Adopt reads the maps and takes their contents as what is programmed. Call it once, before Run.
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

// Synced returns a channel that is closed after the first reconcile, before OnSynced runs.
func (l *Loop) Synced() <-chan struct{} { return l.synced }

// Run reconciles until the context ends, and returns nil then. It returns the error of OnSynced.
func (l *Loop) Run(ctx context.Context) error {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	retry.Stop() // armed after a reconcile only: nothing may run before the first poke
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

// next returns when the loop has to run without a change: for a failed object, or for backends kept
// by listed.go. It returns false where there is neither.
func (l *Loop) next() (time.Time, bool) {
	due, fails := l.failed.next()
	if lapses, any := l.r.lapses(); any && (!fails || lapses.Before(due)) {
		return lapses, true
	}
	return due, fails
}

// onSynced runs the hook OnSynced. The status is synced only after it: a health check must not
// report ready before services work.
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

// step is one reconcile of everything that changed, and of at most retries failed objects that are
// due at until.
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
	report.Err = maps.FirstErrors(errs, 0)
	if l.r.room().moreThan(room) {
		l.failed.roomIsFree(l.o.Now())
	}
	l.end(report, around.node)
}

// surround reconciles what belongs to no single service: the node's addresses, the service CIDRs,
// and leftovers of adopted maps.
func (l *Loop) surround(around surroundings, todo changes, at place) (errs []error) {
	first := !l.isSynced
	do := func(what objectKind, err error) {
		l.result(object{what: what}, change{}, err)
		errs = append(errs, err)
	}
	if around.addrs != nil && (todo.addrs || first || l.ownChanged) {
		l.ownChanged = false
		do(theNodeAddrs, l.r.reconcileAddrs(l.taking(around)))
	}
	// After the services, so that the address of a new service is never refused as unallocated.
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

// errWanted is the failure of leftovers that were kept on purpose: it makes the loop look at them
// again.
var errWanted = errors.New("services that can't be programmed yet may want them")

// result records the outcome of an attempt at an object. It returns the triggers of the changes
// that are now in the maps.
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
	// err is nil where the service only keeps an entry that another service will overwrite.
	if err != nil && !errors.Is(err, errWanted) {
		l.faults.failed(x, l.o.Now())
	}
	return nil
}

// wantedByFailing returns the frontends that failed services ask for: adopted maps may still have
// them.
func (l *Loop) wantedByFailing() map[maps.FrontendKey]bool {
	wanted := map[maps.FrontendKey]bool{}
	for o := range l.failed.all {
		if w := l.r.wishes[o.service]; w != nil {
			w.eachClaim(func(c claim) { wanted[c.frontend.key] = true })
		}
	}
	return wanted
}

// names returns the services to look at, deleted ones first: they may hold addresses and room that
// others need.
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
