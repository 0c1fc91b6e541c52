// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Limits of the time until a response's headers arrive. A load balancer that has lost the API
// server may accept a request and answer HTTP/2 pings, and never answer the request. The API server
// sends the headers of a watch when it opens the watch, after at most 15 s in a queue. The API
// server itself ends any other request after 60 s.
const (
	watchAnswerIn   = 30 * time.Second
	requestAnswerIn = 65 * time.Second
)

// answerLimit ends a request if its response's headers do not arrive in time. It does not limit the
// response's body: a watch lasts for minutes.
type answerLimit struct {
	next           http.RoundTripper
	watch, request time.Duration
}

// WrappedRoundTripper returns the wrapped transport. client-go unwraps transports by this method.
func (a answerLimit) WrappedRoundTripper() http.RoundTripper { return a.next }

func (a answerLimit) RoundTrip(r *http.Request) (*http.Response, error) {
	limit := a.request
	if r.URL.Query().Get("watch") == "true" {
		limit = a.watch
	}
	ctx, cancel := context.WithCancel(r.Context())
	timer := time.AfterFunc(limit, cancel)
	resp, err := a.next.RoundTrip(r.WithContext(ctx))
	late := !timer.Stop() && r.Context().Err() == nil
	if err == nil && !late {
		resp.Body = limitedBody{resp.Body, cancel}
		return resp, nil
	}
	cancel()
	if err == nil {
		_ = resp.Body.Close() // the request is cancelled
	}
	if late {
		return nil, fmt.Errorf("%s has not answered the request within %s: it, or a load balancer before it, hangs", r.URL.Host, limit)
	}
	return nil, err
}

// limitedBody releases the context of its request when it is closed.
type limitedBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b limitedBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}
