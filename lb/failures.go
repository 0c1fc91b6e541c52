// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"container/heap"
	"errors"
	"time"

	"shunt/maps"
)

// object is what is programmed, and retried, as a whole.
type object struct {
	what objectKind
	// service is set for aService only.
	service ServiceName
}

type objectKind uint8

const (
	aService objectKind = iota
	// theNodeAddrs are the addresses that take node ports.
	theNodeAddrs
	// theServiceCIDRs are the ranges of cluster IPs.
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

// failure is an object that could not be programmed and is retried.
type failure struct {
	object object
	// change is what changed and is not in the maps yet.
	change change
	err    error
	// attempts counts the attempts since the last change of the object.
	attempts int
	// full: the only cause was a full map.
	full bool
	due  time.Time
	at   int // index in the queue
}

// The wait before an object is tried again doubles from retryFirst to retryMax.
const (
	retryFirst = grace
	retryMax   = 30 * time.Second
	// retriesAtOnce bounds the objects that one reconcile retries: a change that arrives meanwhile
	// waits for no more than that.
	retriesAtOnce = 64
)

// backoff returns the wait after a number of attempts.
func backoff(attempts int) time.Duration {
	return min(retryFirst<<min(attempts, 10), retryMax)
}

// failures are the failed objects. Each has its own wait: the cost of one does not depend on
// changes of others. Only the loop's goroutine uses it.
type failures struct {
	all map[object]*failure
	// queue has them ordered by due.
	queue failureQueue
	// full are those that failed for want of room, until roomIsFree makes them due early.
	full  map[object]*failure
	count changeCount
	// services counts the failed Services.
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

// take adds to todo the failures that are due at until, and no more than most. They stay in
// failures until done or failed records the result.
func (f *failures) take(todo *changes, until time.Time, most int) {
	var taken []*failure
	for len(taken) < most && len(f.queue) > 0 && !f.queue[0].due.After(until) {
		x := heap.Pop(&f.queue).(*failure)
		taken = append(taken, x)
		todo.object(x.object)
	}
	for _, x := range taken {
		// The attempt itself sets the next time; until then it must not be due again.
		x.due = until.Add(backoff(x.attempts + 1))
		heap.Push(&f.queue, x)
	}
}

// done removes an object, and returns its change and attempts; zero if it had not failed.
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

// failed records a failed attempt. changed: the object has changed since the last attempt, so that
// the waits start again with the shortest.
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

// roomIsFree makes some of the objects that failed for want of room due soon. It takes few, so that
// it costs little if the room is not enough for them.
func (f *failures) roomIsFree(now time.Time) {
	n := 0
	for o, x := range f.full {
		if n++; n > retriesAtOnce {
			return
		}
		delete(f.full, o)
		if soon := now.Add(grace); x.due.After(soon) { // when freed ids and slots may be used
			x.due = soon
			heap.Fix(&f.queue, x.at)
		}
	}
}

// err returns the errors of failed objects that are no Services; nil where there are none.
func (f *failures) err() error {
	var errs []error
	for _, what := range []objectKind{theNodeAddrs, theServiceCIDRs, theLeftovers} {
		if x := f.all[object{what: what}]; x != nil && !errors.Is(x.err, errWanted) {
			errs = append(errs, x.err)
		}
	}
	return maps.FirstErrors(errs, 0)
}

// failureQueue implements heap.Interface, ordered by due.
type failureQueue []*failure

func (q failureQueue) Len() int           { return len(q) }
func (q failureQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q failureQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push implements heap.Interface.
func (q *failureQueue) Push(x any) {
	f := x.(*failure)
	f.at = len(*q)
	*q = append(*q, f)
}

// Pop implements heap.Interface.
func (q *failureQueue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return x
}
