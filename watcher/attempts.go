// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"net/http"
	"reflect"

	"k8s.io/apimachinery/pkg/watch"
)

// attempts reports every failed attempt of a request. client-go retries a request
// ten times, a second apart, if a reset, an end of file or a timeout ended it. If a
// watch still fails after ten retries, client-go returns an empty watch that ends at once
// and no error, and the reflector starts again. Without attempts, shunt would never log
// that the API server can't be reached (behind a load balancer that has lost it, for example).
type attempts struct {
	next http.RoundTripper
}

// failedKey is the key of a func(error) in the context of a request. The function is
// called for each attempt that received no response.
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

// WrappedRoundTripper returns the wrapped transport. client-go unwraps transports by this method.
func (a attempts) WrappedRoundTripper() http.RoundTripper { return a.next }

var errNoWatch = errors.New("the watch ended before it began")

var typeOfNoWatch = reflect.TypeOf(watch.NewEmptyWatch())

// noWatch reports whether w is the empty watch that client-go returns after a failure.
func noWatch(w watch.Interface) bool { return reflect.TypeOf(w) == typeOfNoWatch }
