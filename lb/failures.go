// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"container/heap"
	"errors"
	"time"
)

// object is what is brought into the maps, or tried again, as one.
type object struct {
	what objectKind
	// service is zero for other kinds.
	service ServiceName
}

type objectKind uint8

const (
	aService objectKind = iota
	// theNodeAddrs are the addresses that take node ports.
	theNodeAddrs
	// theServiceCIDRs are the ranges that cluster IPs come from.
	theServiceCIDRs
	// theLeftovers are entries of adopted maps that no service has claimed.
	theLeftovers
)

// String returns the object as the log names it.
func (o object) String() string {
	switch o.what {
	case theNodeAddrs:
		return "the node's addresses"
	case theServiceCIDRs:
		return "the service CIDRs"
	case theLeftovers:
		return "the entries that an earlier daemon left"
	}
	return "Service " + o.service.String()
}

// failure is an object that could not be brought into the maps, and is tried again.
type failure struct {
	object object
	// change is what the maps still lack.
	change change
	err    error
	// attempts counts those since the object changed last.
	attempts int
	// full: it failed for want of room in a map, and for nothing else.
	full bool
	due  time.Time
	at   int // in the queue
}

// The wait before an object is tried again doubles from retryFirst to retryMax.
const (
	retryFirst = grace
	retryMax   = 30 * time.Second
	// retriesAtOnce bounds the objects that one reconcile tries again: a change that
	// comes meanwhile waits for no more than that.
	retriesAtOnce = 64
)

// backoff returns the wait after so many attempts.
func backoff(attempts int) time.Duration {
	return min(retryFirst<<min(attempts, 10), retryMax)
}

// failures are the objects that failed, each with its own wait: what one of them
// costs is independent of the changes of others. It belongs to the loop's goroutine.
type failures struct {
	all map[object]*failure
	// queue has them by due.
	queue failureQueue
	// full are those that room in a map would help, and that wait longer than for
	// the next that is free.
	full  map[object]*failure
	count changeCount
	// services counts those that are Services.
	services int
}

func newFailures() failures {
	return failures{all: map[object]*failure{}, full: map[object]*failure{}}
}

func (f *failures) empty() bool { return len(f.all) == 0 }

// next returns when the first failure is due, and false where there is none.
func (f *failures) next() (time.Time, bool) {
	if len(f.queue) == 0 {
		return time.Time{}, false
	}
	return f.queue[0].due, true
}

// take adds to todo the failures that are due at a time, so many at most. They stay
// failures until done or failed says what became of them.
func (f *failures) take(todo *changes, until time.Time, most int) {
	var taken []*failure
	for len(taken) < most && len(f.queue) > 0 && !f.queue[0].due.After(until) {
		x := heap.Pop(&f.queue).(*failure)
		taken = append(taken, x)
		todo.object(x.object)
	}
	for _, x := range taken {
		// Not due before its attempt is over, which sets the next time.
		x.due = until.Add(backoff(x.attempts + 1))
		heap.Push(&f.queue, x)
	}
}

// done forgets that an object has failed and returns what it lacked.
func (f *failures) done(o object) (lacked change, attempts int) {
	x := f.all[o]
	if x == nil {
		return change{}, 0
	}
	heap.Remove(&f.queue, x.at)
	delete(f.all, o)
	delete(f.full, o)
	f.count.sub(x.change.counts())
	if o.what == aService {
		f.services--
	}
	return x.change, x.attempts
}

// failed notes that an attempt has failed. changed: something new was asked of the
// object, so that its next wait is short.
func (f *failures) failed(o object, c change, changed bool, err error, full bool, now time.Time) *failure {
	x := f.all[o]
	if x == nil {
		x = &failure{object: o, due: now}
		f.all[o] = x
		heap.Push(&f.queue, x)
		if o.what == aService {
			f.services++
		}
	}
	f.count.sub(x.change.counts())
	x.change.add(c)
	f.count.add(x.change.counts())
	if changed {
		x.attempts = 0
	}
	x.attempts++
	x.err, x.full = err, full
	x.due = now.Add(backoff(x.attempts))
	heap.Fix(&f.queue, x.at)
	delete(f.full, o)
	if full {
		f.full[o] = x
	}
	return x
}

// roomIsFree makes some of those due soon that failed for want of room: so many that
// they cost little if it is not for them.
func (f *failures) roomIsFree(now time.Time) {
	n := 0
	for o, x := range f.full {
		if n++; n > retriesAtOnce {
			return
		}
		delete(f.full, o)
		if soon := now.Add(grace); x.due.After(soon) { // when what was freed may be used
			x.due = soon
			heap.Fix(&f.queue, x.at)
		}
	}
}

// err returns why an object that is no Service fails, nil where none does.
func (f *failures) err() error {
	var errs []error
	for _, what := range []objectKind{theNodeAddrs, theServiceCIDRs, theLeftovers} {
		if x := f.all[object{what: what}]; x != nil && !errors.Is(x.err, errWanted) {
			errs = append(errs, x.err)
		}
	}
	return firstOf(errs)
}

// failureQueue is a heap.Interface, ordered by due.
type failureQueue []*failure

func (q failureQueue) Len() int           { return len(q) }
func (q failureQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q failureQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push is heap.Interface's.
func (q *failureQueue) Push(x any) {
	f := x.(*failure)
	f.at = len(*q)
	*q = append(*q, f)
}

// Pop is heap.Interface's.
func (q *failureQueue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return x
}
