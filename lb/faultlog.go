// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// Limits for log lines about failures. Each object may write two lines at once, then one in ten
// minutes; all objects together twenty at once, then one in ten seconds. Each line counts the lines
// that were left out before it, and `shunt status` lists what fails.
const (
	linesPerObject      = 2
	linePeriodPerObject = 10 * time.Minute
	linesOfAll          = 20
	linePeriodOfAll     = 10 * time.Second
)

// faultLog logs objects that cannot be programmed. Only the loop's goroutine uses it.
type faultLog struct {
	log *zap.Logger
	all *rate.Limiter
	// unsaid counts the failures that the limit for all objects kept out of the log since its last
	// line.
	unsaid int
	of     map[object]*objectLog
}

// objectLog is the state of one object. It is kept until the object is deleted: an object that
// fails, succeeds and fails again does not get a new limit.
type objectLog struct {
	limiter *rate.Limiter
	unsaid  int
	// said: the present failure was logged.
	said bool
}

func newFaultLog(log *zap.Logger) *faultLog {
	return &faultLog{log: log, all: rate.NewLimiter(rate.Every(linePeriodOfAll), linesOfAll), of: map[object]*objectLog{}}
}

// failed logs a failure, within the limits.
func (f *faultLog) failed(x *failure, now time.Time) {
	o := f.of[x.object]
	if o == nil {
		o = &objectLog{limiter: rate.NewLimiter(rate.Every(linePeriodPerObject), linesPerObject)}
		f.of[x.object] = o
	}
	if !o.limiter.AllowN(now, 1) {
		o.unsaid++
		return
	}
	if !f.all.AllowN(now, 1) {
		f.unsaid++
		return
	}
	f.log.Error("can't be programmed; what was stays in effect, and it is tried again",
		zap.Stringer("object", x.object), zap.Error(x.err), zap.Int("attempts", x.attempts),
		zap.Duration("retry_in", backoff(x.attempts)), zap.Int("lines_left_out", o.unsaid),
		zap.Int("lines_of_others_left_out", f.unsaid))
	o.unsaid, f.unsaid, o.said = 0, 0, true
}

// done logs that an object is programmed, if its failure was logged.
func (f *faultLog) done(o object, attempts int) {
	l := f.of[o]
	if l == nil || attempts == 0 || !l.said {
		return
	}
	l.said = false
	f.log.Info("is programmed now", zap.Stringer("object", o), zap.Int("after_attempts", attempts))
}

// forget removes the state of a deleted object.
func (f *faultLog) forget(o object) { delete(f.of, o) }
