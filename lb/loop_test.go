// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"shunt/maps"
)

// running is a loop whose Run is under way in a synctest bubble, where time advances only while all
// goroutines wait.
type running struct {
	*rig
	fail   atomic.Pointer[func(string) error] // decides which calls fail; nil: none
	cancel context.CancelFunc
	ended  chan error
}

// run starts a loop on maps. The caller must call end.
func run(t *testing.T, tables maps.Tables, change func(*LoopOptions)) *running {
	t.Helper()
	r := &running{ended: make(chan error, 1)}
	faulty := &maps.Faulty{Tables: tables, Fail: func(method string) error {
		if fail := r.fail.Load(); fail != nil {
			return (*fail)(method)
		}
		return nil
	}}
	r.rig = &rig{t: t, tables: faulty, store: NewStore(time.Now), heard: &recorder{}}
	o := LoopOptions{Store: r.store, Tables: faulty, Log: zap.NewNop(), Now: time.Now, NodeName: "me", Observer: r.heard}
	if change != nil {
		change(&o)
	}
	r.loop = NewLoop(o)
	if _, err := r.loop.Adopt(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() { r.ended <- r.loop.Run(ctx) }()
	return r
}

func (r *running) end() {
	r.cancel()
	if err := <-r.ended; err != nil {
		r.t.Errorf("Run: %v", err)
	}
}

// TestRunWaitsForSync checks that nothing is written before SetSynced, however long that takes: a
// restart without an API server must leave the adopted contents in effect.
func TestRunWaitsForSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tables := maps.NewFake(roomy)
		before := newRig(t, tables, newTestClock())
		numbered(before.store, 3)
		before.mustStep()
		want := before.dump().Text()

		r := run(t, tables, nil)
		r.store.SetService(numberedService(0))
		time.Sleep(100 * time.Hour)
		if got := r.dump().Text(); got != want || len(r.heard.all()) != 0 {
			t.Errorf("after %d reconciles without a sync the maps hold\n%s\nbefore\n%s", len(r.heard.all()), got, want)
		}
		select {
		case <-r.loop.Synced():
			t.Error("Synced says that it is")
		default:
		}
		numbered(r.store, 3)
		r.store.SetSynced()
		<-r.loop.Synced()
		synctest.Wait()
		if got := r.heard.last(); got.Writes.Total() != 0 || !got.Full {
			t.Errorf("the first reconcile: %+v", got)
		}
		r.end()
	})
}

// TestRunCoalesces checks that the first change is taken at once, and those that arrive meanwhile
// together, and that there is no reconcile without a change.
func TestRunCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t, maps.NewFake(roomy), nil)
		r.store.SetSynced()
		synctest.Wait()
		at := time.Now()
		r.store.SetService(numberedService(1))
		synctest.Wait()
		if n := len(r.heard.all()); n != 2 || time.Since(at) != 0 {
			t.Errorf("%d reconciles, the last %s after the change", n, time.Since(at))
		}
		hold := make(chan struct{})
		wait := func(string) error { <-hold; return nil }
		r.fail.Store(&wait)
		r.store.SetSlice(numberedSlice(1, 0, 1))
		synctest.Wait()
		for i := range 50 {
			r.store.SetSlice(numberedSlice(1, 1+i, 1))
		}
		close(hold)
		synctest.Wait()
		if n := len(r.heard.all()); n != 4 {
			t.Errorf("%d reconciles, want 4: sync, service, slice, burst", n)
		}
		time.Sleep(time.Hour)
		if n := len(r.heard.all()); n != 4 {
			t.Errorf("%d reconciles of nothing", n-4)
		}
		r.end()
	})
}

// TestRunBacksOff checks that a failed object is retried, with waits that double up to a bound, and
// at once when it changes; then the waits are short again.
func TestRunBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t, maps.NewFake(roomy), nil)
		r.store.SetSynced()
		synctest.Wait()
		fail := func(string) error { return errFault }
		r.fail.Store(&fail)
		r.store.SetService(numberedService(1))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		var waits []time.Duration
		for i, rep := range r.heard.all()[2:] {
			waits = append(waits, rep.Started.Sub(r.heard.all()[i+1].Ended))
		}
		for i, w := range waits {
			if want := min(grace<<(i+1), retryMax); w != want {
				t.Errorf("wait %d is %s, want %s: %v", i, w, want, waits)
			}
		}
		if len(waits) < 20 {
			t.Errorf("only %d retries in ten minutes", len(waits))
		}
		n := len(r.heard.all())
		r.store.SetSlice(numberedSlice(1, 0, 1))
		synctest.Wait()
		if len(r.heard.all()) != n+1 {
			t.Error("a change does not make it try at once")
		}
		r.fail.Store(nil)
		time.Sleep(retryMax)
		synctest.Wait()
		if rep := r.heard.last(); rep.Err != nil || r.leads("10.96.0.1:80") != "10.0.0.1:8080" {
			t.Errorf("%v; %s", rep.Err, r.dump().Text())
		}
		if due, waits := r.loop.failed.next(); waits {
			t.Errorf("it will be tried again at %s", due)
		}
		n = len(r.heard.all())
		time.Sleep(time.Hour)
		if len(r.heard.all()) != n {
			t.Error("it goes on trying")
		}
		r.end()
	})
}

// TestRunOnSynced checks that OnSynced runs once, and that its error ends Run.
func TestRunOnSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		refused := errors.New("refused")
		r := run(t, maps.NewFake(roomy), func(o *LoopOptions) {
			o.OnSynced = func(context.Context) error {
				calls++
				if calls == 1 {
					return nil
				}
				return refused
			}
		})
		r.store.SetSynced()
		r.store.SetService(numberedService(1))
		synctest.Wait()
		r.store.SetService(numberedService(2))
		synctest.Wait()
		if calls != 1 {
			t.Errorf("called %d times", calls)
		}
		r.end()
		calls = 1
		r = run(t, maps.NewFake(roomy), func(o *LoopOptions) {
			o.OnSynced = func(context.Context) error { return refused }
		})
		r.store.SetSynced()
		if err := <-r.ended; !errors.Is(err, refused) {
			t.Errorf("Run: %v", err)
		}
		r.cancel()
	})
}

// TestSyncedAfterHook checks that the status is synced only after OnSynced: that puts the maps into
// effect.
func TestSyncedAfterHook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		r := run(t, maps.NewFake(roomy), func(o *LoopOptions) {
			o.OnSynced = func(context.Context) error { <-goOn; return nil }
		})
		r.store.SetSynced()
		synctest.Wait()
		if r.loop.Status().Synced {
			t.Error("synced while the hook runs")
		}
		close(goOn)
		synctest.Wait()
		if !r.loop.Status().Synced {
			t.Error("not synced though the hook has run")
		}
		r.end()
	})
}

// TestAdoptFails checks that Adopt returns the error of Dump: with a dump taken as empty,
// everything in the maps would leak.
func TestAdoptFails(t *testing.T) {
	l := NewLoop(LoopOptions{Store: NewStore(time.Now), Tables: noDump{maps.NewFake(roomy)}, Log: zap.NewNop(), Now: time.Now})
	if _, err := l.Adopt(); !errors.Is(err, errFault) {
		t.Error(err)
	}
}

type noDump struct{ maps.Tables }

func (noDump) Dump() (*maps.Dump, error) { return nil, errFault }
