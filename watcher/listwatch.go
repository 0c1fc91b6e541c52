// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"cmp"
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// sliceSelector is the label selector for the EndpointSlices that the API server sends.
// Services have no selector: see convert.go.
const sliceSelector = "!" + labelProxyName + ",!" + labelHeadless

// failureInterval is the time after which a lasting failure is logged again.
const failureInterval = 30 * time.Second

// resource is the typed client of one kind of object.
type resource[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// listWatch returns a ListerWatcher for the objects that sel selects. It reports the outcome
// of each request to link, because a reflector does not report that a watch can't be
// reopened. client determines whether streamed lists are used (a fake client has none).
func listWatch[L runtime.Object](r resource[L], sel func(*metav1.ListOptions), link *link, client any) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (list runtime.Object, err error) {
			sel(&o)
			link.ask(ctx, "list", func(ctx context.Context) error {
				list, err = r.List(ctx, o)
				return err
			})
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (w watch.Interface, err error) {
			sel(&o)
			link.ask(ctx, "watch", func(ctx context.Context) error {
				if w, err = r.Watch(ctx, o); noWatch(w) {
					return errNoWatch
				}
				return err
			})
			return w, err
		},
	}, client)
}

// link records whether requests for one resource succeed. It logs a failure at once and then
// at most every failureInterval, and the end of the failure once.
type link struct {
	resource string
	log      *zap.Logger
	// hint returns advice for the log. If hint is nil or returns "", the advice is derived
	// from the error.
	hint func() string

	mu       sync.Mutex
	since    time.Time // when the failure began; zero: there is none
	said     time.Time
	failures int // since said
	// noWatches is set when a watch has failed. The failure then ends with the next
	// successful watch and not with a list: an account may be allowed to list but not to watch.
	noWatches bool
	// up is set when a watch was opened and no request has failed since. last is when the
	// API server last sent a list, an event or a bookmark.
	up      bool
	last    time.Time
	lastErr string
}

// WatchState is the state of the watch of one resource.
type WatchState struct {
	// Resource is the plural name, such as endpointslices.
	Resource string
	// Up is set when a watch was opened and no request has failed since.
	Up bool
	// LastEvent is when the API server last sent a list, an event or a bookmark of this resource.
	LastEvent time.Time
	// FailingSince is when requests began to fail, Error the error of the latest one;
	// zero and empty while requests succeed.
	FailingSince time.Time
	Error        string
}

func (l *link) state() WatchState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return WatchState{Resource: l.resource, Up: l.up, LastEvent: l.last, FailingSince: l.since, Error: l.lastErr}
}

// heard records that the API server sent a list, an event or a bookmark.
func (l *link) heard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = time.Now()
}

// ask makes a request, and records each failed attempt and the outcome.
func (l *link) ask(ctx context.Context, verb string, request func(context.Context) error) {
	heard := false
	err := request(withFailed(ctx, func(err error) {
		heard = true
		l.did(ctx, verb, err)
	}))
	if err == nil || !heard {
		l.did(ctx, verb, err)
	}
}

func (l *link) did(ctx context.Context, verb string, err error) {
	if ctx.Err() != nil {
		return // the watcher is stopping
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if err == nil {
		l.up = l.up || verb == "watch"
		l.succeeded(verb, now)
		return
	}
	if expired(err) {
		return // the watch's resource version is too old: the reflector lists again
	}
	if l.since.IsZero() {
		l.since = now
	}
	l.up, l.lastErr = false, err.Error()
	l.failures++
	l.noWatches = l.noWatches || verb == "watch"
	if !l.said.IsZero() && now.Sub(l.said) < failureInterval {
		return
	}
	what := hint(err, l.resource)
	if l.hint != nil {
		what = cmp.Or(l.hint(), what)
	}
	l.log.Error("cannot "+verb+" "+l.resource+": "+what+"; what is programmed stays, and this is retried",
		zap.Error(err), zap.Int("failures", l.failures), zap.Time("since", l.since))
	l.said, l.failures = now, 0
}

func (l *link) succeeded(verb string, now time.Time) {
	if l.since.IsZero() || l.noWatches && verb != "watch" {
		return
	}
	l.log.Info("the API server answers again", zap.String("resource", l.resource),
		zap.Duration("failed", now.Sub(l.since).Round(time.Millisecond)))
	l.since, l.said, l.failures, l.noWatches, l.lastErr = time.Time{}, time.Time{}, 0, false, ""
}

func expired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// hint returns advice for the log on an error of the API server.
func hint(err error, resource string) string {
	switch {
	case apierrors.IsForbidden(err):
		return "the account may not; grant it list and watch on " + resource
	case apierrors.IsUnauthorized(err):
		return "the API server does not accept the credentials; check the token or client certificate"
	case apierrors.IsTooManyRequests(err):
		return "the API server is overloaded"
	}
	return "is the API server's address right, and can this node reach it?"
}
