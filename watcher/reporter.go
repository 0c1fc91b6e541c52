// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"

	"shunt/lb"
)

// Limits of the log lines about one object: a burst of mostSaid, then one every sayAgainIn.
// A line contains the number of warnings that were left out before it.
const (
	mostSaid   = 10
	sayAgainIn = 10 * time.Minute
)

// Limits of the log lines and of the Events about all objects together. The limits of one
// object are not enough: an object may be created again and again under new names.
const (
	mostSaidOfAll   = 300
	sayAgainOfAllIn = 10 * time.Second
	mostEvents      = 100
	eventAgainIn    = 10 * time.Second
)

// budget limits the log lines and Events of all objects of several reporters.
type budget struct {
	mu            sync.Mutex
	lines, events *rate.Limiter
	unsaid        int
}

func newBudget() *budget {
	return &budget{lines: rate.NewLimiter(rate.Every(sayAgainOfAllIn), mostSaidOfAll),
		events: rate.NewLimiter(rate.Every(eventAgainIn), mostEvents)}
}

// line reports whether a line may be logged now. before is the number of lines that were
// left out before it. first is set for the first line that is left out.
func (b *budget) line(now time.Time) (ok, first bool, before int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.lines.AllowN(now, 1) {
		b.unsaid++
		return false, b.unsaid == 1, 0
	}
	before, b.unsaid = b.unsaid, 0
	return true, false, before
}

// event reports whether an Event may be recorded now.
func (b *budget) event(now time.Time) bool { return b.events.AllowN(now, 1) }

// Recorder records Events (the API's objects). Its methods return at once.
type Recorder interface {
	// ServiceWarning records an Event of type Warning on a Service. The UID may be empty.
	ServiceWarning(service lb.ServiceName, uid types.UID, reason, note string)
}

// reporter logs every warning once. A relist, or a newer version of the object with the
// same fault, does not repeat the warning.
type reporter[K comparable] struct {
	log      *zap.Logger
	recorder Recorder // nil: none
	uidOf    func(lb.ServiceName) types.UID

	// all is shared with other reporters; nil: report makes one.
	all *budget
	// now is the clock; nil: time.Now.
	now func() time.Time

	mu   sync.Mutex
	said map[K]*saidOf
}

// saidOf records what was logged about one object. It exists as long as the object, so that an
// object which is repaired and broken again does not start with new limits.
type saidOf struct {
	// warnings are those of the object's newest version.
	warnings map[string]struct{}
	lines    *rate.Limiter
	unsaid   int
}

// report logs the new warnings of an object, records their Events, and removes the warnings
// that the object no longer has from its state. Each log line contains fields.
func (r *reporter[K]) report(key K, warnings []Warning, fields ...zap.Field) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = newBudget()
	}
	of := r.said[key]
	if of == nil {
		if len(warnings) == 0 {
			return
		}
		if r.said == nil {
			r.said = make(map[K]*saidOf)
		}
		of = &saidOf{lines: rate.NewLimiter(rate.Every(sayAgainIn), mostSaid)}
		r.said[key] = of
	}
	before := of.warnings
	of.warnings = make(map[string]struct{}, len(warnings))
	events := make(map[string]bool)
	unsaid, full := 0, false
	for _, w := range warnings {
		what := w.identity()
		of.warnings[what] = struct{}{}
		if _, ok := before[what]; ok {
			continue
		}
		said := fields
		if of.unsaid > 0 {
			said = append(slices.Clone(fields), zap.Int("warnings_left_out", of.unsaid))
		}
		allowed := of.lines.AllowN(r.time(), 1)
		if allowed && r.say(w.String(), said) {
			of.unsaid = 0
		} else {
			unsaid++
			full = full || allowed
		}
		if w.Event != "" && !events[w.Event] && r.recorder != nil && r.all.event(r.time()) {
			events[w.Event] = true
			r.recorder.ServiceWarning(w.Service, r.uidOf(w.Service), w.Event, w.String())
		}
	}
	if unsaid > 0 && of.unsaid == 0 && !full { // warnings left out of later versions are only counted
		r.say(warnings[0].Object()+": and more of the like", append(slices.Clone(fields), zap.Int("warnings", unsaid)))
	}
	of.unsaid += unsaid
}

// say logs a line if the budget allows, and reports whether it did.
func (r *reporter[K]) say(text string, fields []zap.Field) bool {
	ok, first, before := r.all.line(r.time())
	switch {
	case first:
		r.log.Warn("warnings about more objects are left out of the log for now")
	case ok && before > 0:
		fields = append(slices.Clone(fields), zap.Int("lines_left_out_of_all", before))
	}
	if ok {
		r.log.Warn(text, fields...)
	}
	return ok
}

func (r *reporter[K]) time() time.Time {
	if r.now != nil {
		return r.now()
	}
	return time.Now()
}

// forget drops the state of an object that is gone.
func (r *reporter[K]) forget(key K) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.said, key)
}

// retain forgets all objects for which keep returns false.
func (r *reporter[K]) retain(keep func(K) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.said {
		if !keep(key) {
			delete(r.said, key)
		}
	}
}

// identity returns the warning without the indices in its field: if another entry of the list
// is added or removed, the index of the same fault changes.
func (w Warning) identity() string {
	var b strings.Builder
	in := false
	for _, c := range w.Field {
		switch c {
		case '[':
			in = true
		case ']':
			in = false
		}
		if !in || c < '0' || c > '9' {
			b.WriteRune(c)
		}
	}
	b.WriteByte(' ')
	b.WriteString(w.Problem)
	return b.String()
}
