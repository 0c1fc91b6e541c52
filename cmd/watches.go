// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"time"

	"go.uber.org/zap"
	"k8s.io/client-go/tools/metrics"

	"shunt/health"
	"shunt/maps"
	"shunt/watcher"
)

const (
	// watchesInterval is how often the state of the watches is stored if it has changed.
	watchesInterval = time.Second
	// watchErrorText bounds an error in the stored state, in bytes of JSON.
	watchErrorText = 200
)

// watchReport is the state of the watches that a daemon stores for `shunt status`.
type watchReport struct {
	Written time.Time      `json:"written,omitzero"`
	Watches []health.Watch `json:"watches"`
}

// watches returns a function that returns the state of api's watches in the types of
// package health.
func watches(api *watcher.API) func() []health.Watch {
	return func() []health.Watch {
		states := api.Watches()
		all := make([]health.Watch, len(states))
		for i, s := range states {
			all[i] = health.Watch{Resource: s.Resource, Up: s.Up, LastEvent: s.LastEvent, FailingSince: s.FailingSince, Error: s.Error}
		}
		return all
	}
}

// keepWatches stores the state of the watches in map memory whenever it has changed, until
// ctx is done. Without an API server it stores an empty report.
func (d *daemon) keepWatches(ctx context.Context, state func() []health.Watch) error {
	tick := time.NewTicker(watchesInterval)
	defer tick.Stop()
	var before []health.Watch
	for first := true; ; first = false {
		var now []health.Watch
		if state != nil {
			now = state()
		}
		for i := range now {
			now[i].Error = cutJSON(now[i].Error, watchErrorText)
		}
		if first || !reflect.DeepEqual(now, before) {
			before = now
			if err := d.memory.Put(maps.MemoryWatches, watchReport{time.Now().UTC(), now}); err != nil {
				d.log.Warn("shunt status can't say how the watches of the API server go", zap.Error(err))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// cutJSON cuts a text so that its JSON has at most so many bytes, which must be 16 or more. JSON
// writes a quotation mark in two bytes, and control characters and others in six.
func cutJSON(s string, most int) string {
	for n := most; ; n-- {
		text := maps.CutText(s, n)
		if encoded, err := json.Marshal(text); err != nil || len(encoded)-len(`""`) <= most {
			return text
		}
	}
}

// readWatches returns what the daemon last stored, the zero value if it never did.
func readWatches(root string) (r watchReport) {
	memory, err := maps.LoadMemory(root)
	if err != nil {
		return r
	}
	defer memory.Close()
	if memory.Get(maps.MemoryWatches, &r) != nil {
		return watchReport{}
	}
	return r
}

func (r *watchReport) table(w io.Writer, running bool) {
	if r.Written.IsZero() || len(r.Watches) == 0 {
		return
	}
	bad := 0
	for _, one := range r.Watches {
		if !one.Up {
			bad++
		}
	}
	text := "answers: all watches are open"
	if bad > 0 {
		text = fmt.Sprintf("%d of %d watches are NOT open; what is programmed stays in effect", bad, len(r.Watches))
	}
	if !running {
		text += ", as the daemon last knew"
	}
	fmt.Fprintf(w, "API server:\t%s\n", text)
	for _, one := range r.Watches {
		state := "not asked yet"
		switch {
		case one.Up:
			last := one.LastEvent
			state = "watched, last event " + timeText(&last)
		case !one.FailingSince.IsZero():
			state = "failing since " + timeText(&one.FailingSince) + ": " + one.Error
		}
		fmt.Fprintf(w, "  %s\t%s\n", one.Resource, state)
	}
}

// requests passes the measurements of client-go to the metrics of package health.
type requests struct{ *health.Requests }

// register makes client-go report to r. client-go accepts only the first registration of a
// process.
func (r requests) register() {
	metrics.Register(metrics.RegisterOpts{
		RequestLatency:     verbMetric(r.Took),
		RateLimiterLatency: verbMetric(r.Limited),
		RequestSize:        sizeMetric(r.Sent),
		ResponseSize:       sizeMetric(r.Received),
		RequestResult:      resultMetric(r.Ended),
		RequestRetry:       retryMetric(r.Retried),
	})
}

type verbMetric func(verb, host string, d time.Duration)

func (m verbMetric) Observe(_ context.Context, verb string, u url.URL, d time.Duration) {
	m(verb, u.Host, d)
}

type sizeMetric func(verb, host string, bytes float64)

func (m sizeMetric) Observe(_ context.Context, verb, host string, bytes float64) {
	m(verb, host, bytes)
}

type resultMetric func(code, method, host string)

func (m resultMetric) Increment(_ context.Context, code, method, host string) { m(code, method, host) }

type retryMetric func(code, verb, host string)

func (m retryMetric) IncrementRetry(_ context.Context, code, verb, host string) { m(code, verb, host) }
