// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"net/http"
	"reflect"

	"k8s.io/apimachinery/pkg/watch"
)

// attempts reports every attempt of a request that failed. client-go retries a request
// ten times, a second apart, if a reset, an end of file or a timeout ended it. If a
// watch still fails then, client-go returns an empty watch that ends at once. A
// reflector takes that for an answer and starts again. An API server that can't be
// reached (behind a load balancer that has lost it, for example) would never show.
type attempts struct {
	next http.RoundTripper
}

// failedKey is the key of a func(error) in the context of a request. The function is
// called for each attempt that got no answer at all.
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

// WrappedRoundTripper lets client-go find the transport that it made.
func (a attempts) WrappedRoundTripper() http.RoundTripper { return a.next }

var errNoWatch = errors.New("the watch ended before it began")

var typeOfNoWatch = reflect.TypeOf(watch.NewEmptyWatch())

// noWatch reports whether a watch is the empty one that client-go returns for a failure.
func noWatch(w watch.Interface) bool { return reflect.TypeOf(w) == typeOfNoWatch }
