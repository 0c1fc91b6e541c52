// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"net/http"
	"reflect"

	"k8s.io/apimachinery/pkg/watch"
)

// client-go tries a request again that a reset, an end of file or a timeout ended,
// ten times with a second between them, and where that was a watch it then pretends
// that there was one which ended at once. A reflector takes that for an answer and
// begins anew, so that an API server which can't be reached (through a load
// balancer that has lost it, say) would never be heard of. attempts tells of every
// attempt that failed.
type attempts struct {
	next http.RoundTripper
}

// failedKey is where the context of a request has a func(error) that hears of
// attempts which got no answer at all.
type failedKey struct{}

func withFailed(ctx context.Context, failed func(error)) context.Context {
	return context.WithValue(ctx, failedKey{}, failed)
}

func (a attempts) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := a.next.RoundTrip(r)
	if failed, ok := r.Context().Value(failedKey{}).(func(error)); ok && err != nil {
		failed(err)
	}
	return resp, err
}

// WrappedRoundTripper lets client-go look for what it knows behind us.
func (a attempts) WrappedRoundTripper() http.RoundTripper { return a.next }

var errNoWatch = errors.New("the watch ended before it began")

var typeOfNoWatch = reflect.TypeOf(watch.NewEmptyWatch())

// noWatch says that a watch is the pretended one.
func noWatch(w watch.Interface) bool { return reflect.TypeOf(w) == typeOfNoWatch }
