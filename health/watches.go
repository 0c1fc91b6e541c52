// SPDX-License-Identifier: Apache-2.0

package health

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Watch is the state of a watch of the API server.
type Watch struct {
	// Resource is the plural name, such as endpointslices.
	Resource string `json:"resource"`
	// Up is set when a watch was opened and no request has failed since.
	Up bool `json:"up"`
	// LastEvent is when the API server last sent a list, an event or a bookmark of this
	// resource.
	LastEvent time.Time `json:"lastEvent,omitzero"`
	// FailingSince is when requests began to fail, Error the error of the latest one;
	// zero and empty while requests succeed.
	FailingSince time.Time `json:"failingSince,omitzero"`
	Error        string    `json:"error,omitempty"`
}

var (
	watchUp = desc("shunt_watch_up",
		"Whether a watch of the API server is open: 1, or 0 where requests fail or none was made yet.", "resource")
	watchLastEvent = desc("shunt_watch_last_event_timestamp_seconds",
		"When the API server last sent anything for a watch, bookmarks included, as a Unix time in seconds; 0 if it never did.", "resource")
)

func (m *collector) collectWatches(out chan<- prometheus.Metric) {
	if m.checker.watches == nil {
		return
	}
	for _, w := range m.checker.watches() {
		up := 0.0
		if w.Up {
			up = 1
		}
		gauge(out, watchUp, up, w.Resource)
		gauge(out, watchLastEvent, unix(w.LastEvent), w.Resource)
	}
}

// watchWarnings returns a warning for each resource whose requests fail.
func (c *checker) watchWarnings() []string {
	if c.watches == nil {
		return nil
	}
	var warnings []string
	for _, w := range c.watches() {
		if !w.FailingSince.IsZero() {
			warnings = append(warnings, "the API server has not answered for "+w.Resource+" since "+
				w.FailingSince.UTC().Format(time.RFC3339)+"; what is programmed stays in effect")
		}
	}
	return warnings
}
