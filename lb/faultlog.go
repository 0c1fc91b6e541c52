// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// How many lines of the log failures make: of one object the first at once, then few
// in a long time; of all together a burst, then one in a while. Each line counts those
// that were left out before it, and `shunt status` names what fails.
const (
	linesPerObject      = 2
	linePeriodPerObject = 10 * time.Minute
	linesOfAll          = 20
	linePeriodOfAll     = 10 * time.Second
)

// faultLog writes the lines of the log about objects that can't be brought into the
// maps. It belongs to the loop's goroutine.
type faultLog struct {
	log *zap.Logger
	all *rate.Limiter
	// unsaid counts failures of all objects that no line tells of.
	unsaid int
	of     map[object]*objectLog
}

// objectLog is kept until the object is gone: one that fails, works and fails again
// does not begin anew.
type objectLog struct {
	limiter *rate.Limiter
	unsaid  int
	// said: the failure that lasts has a line.
	said bool
}

func newFaultLog(log *zap.Logger) *faultLog {
	return &faultLog{log: log, all: rate.NewLimiter(rate.Every(linePeriodOfAll), linesOfAll), of: map[object]*objectLog{}}
}

// failed says that an object has failed.
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

// done says that an object which had failed works.
func (f *faultLog) done(o object, attempts int) {
	l := f.of[o]
	if l == nil || attempts == 0 || !l.said {
		return
	}
	l.said = false
	f.log.Info("is programmed now", zap.Stringer("object", o), zap.Int("after_attempts", attempts))
}

// forget drops what is known of an object that is gone.
func (f *faultLog) forget(o object) { delete(f.of, o) }
