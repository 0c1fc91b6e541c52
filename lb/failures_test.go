// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"shunt/maps"
)

// stubborn is a rig whose maps never take the services in broken.
type stubborn struct {
	*rig
	broken map[ServiceName]bool
	// tries counts SetName calls for services in broken; others counts the rest.
	tries, others int
	logs          *observer.ObservedLogs
}

// brokenTables fails every SetName of a service in broken, so that nothing of it is programmed.
type brokenTables struct {
	maps.Tables
	s *stubborn
}

func (b brokenTables) SetName(id uint32, n maps.Name) error {
	if b.s.broken[ServiceName{n.Namespace, n.Name}] {
		b.s.tries++
		return errFault
	}
	b.s.others++
	return b.Tables.SetName(id, n)
}

func newStubborn(t testing.TB, sizes maps.Sizes) *stubborn {
	t.Helper()
	s := &stubborn{broken: map[ServiceName]bool{}}
	clock := newTestClock()
	s.rig = newRig(t, brokenTables{maps.NewFake(sizes), s}, clock)
	core, logs := observer.New(zapcore.InfoLevel)
	s.loop.faults.log, s.logs = zap.New(core), logs
	return s
}

// run does what Run does after a change: failures are not retried.
func (s *stubborn) run() Report {
	s.loop.step(s.clock.now(), 0)
	return s.heard.last()
}

// retry does what Run does when a failure is due.
func (s *stubborn) retry() Report {
	s.loop.step(s.clock.now(), retriesAtOnce)
	return s.heard.last()
}

// TestFailingServicesCostOthersNothing checks that with 5,000 services that cannot be programmed, a
// change of another service looks at that service only, and makes as many writes as without them.
func TestFailingServicesCostOthersNothing(t *testing.T) {
	const failing = 5000
	s := newStubborn(t, numberedSizes(failing+1))
	for i := range failing {
		s.store.SetService(numberedService(i))
		s.broken[svcName(numberedName(i))] = true
	}
	s.store.SetService(numberedService(failing))
	if rep := s.run(); rep.Failed != failing || s.loop.Status().Failing != failing {
		t.Fatalf("%d failed, status has %d, want %d", rep.Failed, s.loop.Status().Failing, failing)
	}
	version := s.loop.Status().Problems.Version
	s.tries = 0
	for i := range 100 {
		s.store.SetSlice(numberedSlice(failing, i, 1))
		rep := s.run()
		if rep.Services != 1 || rep.Failed != 0 || rep.Err != nil || s.tries != 0 {
			t.Fatalf("one change: %d services were looked at, %d failed (%v), %d writes for others", rep.Services, rep.Failed, rep.Err, s.tries)
		}
		s.clock.advance(time.Millisecond)
	}
	if got := s.loop.Status(); got.Failing != failing || got.Problems.Version != version {
		t.Errorf("status has %d failing, problems of version %d, want %d and %d", got.Failing, got.Problems.Version, failing, version)
	}
	// When they are due, a reconcile retries at most retriesAtOnce.
	s.clock.advance(retryMax)
	for tried := 0; tried < failing; {
		rep := s.retry()
		if rep.Services > retriesAtOnce || rep.Services == 0 {
			t.Fatalf("%d services were tried at once, %d before", rep.Services, tried)
		}
		tried += rep.Services
	}
	if rep := s.retry(); rep.Services != 0 {
		t.Errorf("%d are due again at the same time", rep.Services)
	}
	// After the fault is gone, all of them are programmed.
	clear(s.broken)
	s.settle()
	if got := s.loop.Status(); got.Failing != 0 || got.Problems.Total != 0 || got.ServiceChangesPending != 0 {
		t.Errorf("settled: %d failing, %d problems, %d changes pending", got.Failing, got.Problems.Total, got.ServiceChangesPending)
	}
}

// TestOwnBackoff checks that each object has its own wait, which others neither shorten nor extend.
// A change of the object itself is tried at once, and its wait is short again.
func TestOwnBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stubborn{broken: map[ServiceName]bool{svcName(numberedName(1)): true}}
		r := run(t, brokenTables{maps.NewFake(roomy), s}, nil)
		r.store.SetSynced()
		synctest.Wait()
		start := time.Now()
		r.store.SetService(numberedService(1))
		r.store.SetService(numberedService(2))
		for i := range 600 { // every 100 ms something else changes
			time.Sleep(100 * time.Millisecond)
			r.store.SetSlice(numberedSlice(2, i, 1))
		}
		synctest.Wait()
		var tried []time.Duration
		for _, rep := range r.heard.all() {
			if rep.Failed > 0 {
				tried = append(tried, rep.Started.Sub(start).Round(10*time.Millisecond))
			}
		}
		var want []time.Duration
		for at, attempt := time.Duration(0), 1; at < time.Minute; at, attempt = at+backoff(attempt), attempt+1 {
			want = append(want, at)
		}
		if !slices.Equal(tried, want) {
			t.Errorf("tried at %v, want %v", tried, want)
		}
		n := len(r.heard.all())
		r.store.SetSlice(numberedSlice(1, 0, 1))
		synctest.Wait()
		if all := r.heard.all(); len(all) != n+1 || all[n].Failed != 1 {
			t.Errorf("a change of the service itself: %d reconciles", len(all)-n)
		}
		if due, _ := r.loop.failed.next(); time.Until(due) != backoff(1) {
			t.Errorf("and the next is in %s", time.Until(due))
		}
		r.end()
	})
}

// TestFailuresAreLoggedSparingly checks that a failing object logs one line at once, and few while
// it fails, each with a count, and that many objects that fail together log few lines too.
func TestFailuresAreLoggedSparingly(t *testing.T) {
	errorsOf := func(s *stubborn) int { return s.logs.FilterLevelExact(zapcore.ErrorLevel).Len() }
	t.Run("one that fails and a thousand changes of others", func(t *testing.T) {
		s := newStubborn(t, roomy)
		s.broken[svcName(numberedName(1))] = true
		s.store.SetService(numberedService(1))
		s.store.SetService(numberedService(2))
		s.run()
		if errorsOf(s) != 1 {
			t.Fatalf("%d lines at once, want one", errorsOf(s))
		}
		for i := range 1000 {
			s.store.SetSlice(numberedSlice(2, i, 1))
			s.clock.advance(time.Second)
			s.retry()
		}
		if n := errorsOf(s); n > 1+1000/int(linePeriodPerObject.Seconds())+linesPerObject {
			t.Errorf("%d lines in 1000 seconds", n)
		}
		last := s.logs.FilterLevelExact(zapcore.ErrorLevel).All()[errorsOf(s)-1].ContextMap()
		if last["object"] != "Service default/"+numberedName(1) || last["lines_left_out"].(int64) == 0 || !strings.Contains(last["error"].(string), errFault.Error()) {
			t.Errorf("the last line: %v", last)
		}
		clear(s.broken)
		s.settle()
		if n := s.logs.FilterMessage("is programmed now").Len(); n != 1 {
			t.Errorf("%d lines say that it is programmed", n)
		}
	})
	t.Run("one that changes all the time", func(t *testing.T) {
		s := newStubborn(t, roomy)
		s.broken[svcName(numberedName(1))] = true
		s.store.SetService(numberedService(1))
		for i := range 1000 {
			s.store.SetSlice(numberedSlice(1, i, 1))
			s.run()
		}
		if n := errorsOf(s); n != linesPerObject {
			t.Errorf("%d lines, want %d", n, linesPerObject)
		}
	})
	t.Run("one that fails every other time", func(t *testing.T) {
		s := newStubborn(t, roomy)
		name := svcName(numberedName(1))
		for range 100 {
			s.broken[name] = true
			s.store.DeleteService(name)
			s.store.SetService(numberedService(1))
			s.run()
			s.broken[name] = false
			s.clock.advance(time.Second)
			s.retry()
			s.store.SetService(numberedService(1).with(func(s *Service) { s.Ports[0].Name = "other" }))
			s.retry()
		}
		if n := s.logs.Len(); n > 2*linesPerObject {
			t.Errorf("%d lines", n)
		}
	})
	t.Run("a thousand that fail one after the other", func(t *testing.T) {
		s := newStubborn(t, numberedSizes(1000))
		for i := range 1000 {
			s.broken[svcName(numberedName(i))] = true
			s.store.SetService(numberedService(i))
			s.run()
		}
		if n := errorsOf(s); n != linesOfAll {
			t.Errorf("%d lines, want %d", n, linesOfAll)
		}
		s.clock.advance(linePeriodOfAll)
		s.retry()
		last := s.logs.FilterLevelExact(zapcore.ErrorLevel).All()[errorsOf(s)-1].ContextMap()
		if last["lines_of_others_left_out"] != int64(1000-linesOfAll) {
			t.Errorf("the next line counts %v left out, want %d", last["lines_of_others_left_out"], 1000-linesOfAll)
		}
	})
}

// TestFailuresAreForgotten checks that a service that keeps changing while it cannot be programmed
// takes no more memory for that, and that the state of deleted objects is removed.
func TestFailuresAreForgotten(t *testing.T) {
	s := newStubborn(t, numberedSizes(100))
	for i := range 100 {
		s.broken[svcName(numberedName(i))] = true
		s.store.SetService(numberedService(i))
	}
	s.run()
	for i := range 10 * maxTriggers {
		n := numberedSlice(1, i, 1)
		n.LastChange = s.clock.t
		s.store.SetSlice(n)
		if i%3 == 0 {
			s.run()
		}
	}
	s.run()
	x := s.loop.failed.all[object{service: svcName(numberedName(1))}]
	if n := len(x.change.triggers); n != maxTriggers || x.change.endpoints != 10*maxTriggers {
		t.Errorf("%d triggers and %d changes are remembered, want %d and %d", n, x.change.endpoints, maxTriggers, 10*maxTriggers)
	}
	if got := s.loop.Status(); got.EndpointChangesPending != 10*maxTriggers || got.ServiceChangesPending != 100 {
		t.Errorf("%d and %d changes are pending", got.EndpointChangesPending, got.ServiceChangesPending)
	}
	for i := range 100 {
		s.store.DeleteService(svcName(numberedName(i)))
	}
	s.run()
	l := s.loop
	if n := len(l.failed.all) + len(l.failed.full) + len(l.failed.queue) + len(l.faults.of) + len(l.r.problems.all) +
		len(l.r.claims.to) + len(l.r.wishes) + l.failed.services; n != 0 || l.failed.count != (changeCount{}) {
		t.Errorf("%d things are remembered of services that are gone, and changes %+v", n, l.failed.count)
	}
	if got := l.Status(); got.LastSync.IsZero() || got.EndpointChangesPending+got.ServiceChangesPending != 0 {
		t.Errorf("status: %+v", got)
	}
}

// TestPruneBesideFailures checks that leftovers of an earlier daemon are removed although a service
// cannot be programmed. The frontends that this service asks for stay until it can be, with what
// they refer to.
func TestPruneBesideFailures(t *testing.T) {
	clock := newTestClock()
	fake := maps.NewFake(roomy)
	before := newRig(t, newGuard(t, fake, clock), clock)
	for i := range 3 {
		before.store.SetService(numberedService(i))
		before.store.SetSlice(numberedSlice(i, 0, 2))
	}
	before.mustStep()
	frontend := func(i int) string { return fmt.Sprintf("10.96.0.%d:80", i) }
	for id := range before.dump().Names { // the next daemon finds all of it without names
		if err := fake.DeleteName(id); err != nil {
			t.Fatal(err)
		}
	}
	s := &stubborn{broken: map[ServiceName]bool{svcName(numberedName(1)): true, svcName(numberedName(3)): true}}
	s.rig = newRig(t, brokenTables{fake, s}, clock) // no guard: it reports entries without a name
	for i := range 2 {                              // service 2 is deleted
		s.store.SetService(numberedService(i))
		s.store.SetSlice(numberedSlice(i, 0, 2))
	}
	s.store.SetService(numberedService(3)) // fails, and was never in the maps
	s.step()
	if got := s.leads(frontend(2)); got != "no frontend" {
		t.Errorf("that of a service that is gone leads to %s", got)
	}
	if got := s.leads(frontend(1)); got != before.fresh().leads(frontend(1)) {
		t.Errorf("that of a service that fails leads to %s", got)
	}
	if n := len(s.dump().Backends); n != 2+2 {
		t.Errorf("%d backends, want those of two services", n)
	}
	clear(s.broken)
	s.settle()
	if !s.loop.pruned || len(s.loop.r.orphans) != 0 || !s.loop.r.left.empty() {
		t.Errorf("leftovers: %v, %+v", s.loop.r.orphans, s.loop.r.left)
	}
	s.sameAs(s.fresh(), "settled")
}

// TestNodeObjectsFailAlone checks that objects that are no services fail on their own, and that
// Status.Err reports them.
func TestNodeObjectsFailAlone(t *testing.T) {
	clock := newTestClock()
	fail := true
	r := newRig(t, &maps.Faulty{Tables: maps.NewFake(roomy), Fail: func(method string) error {
		if fail && (method == "SetNodeAddr" || method == "SetServiceCIDR") {
			return errFault
		}
		return nil
	}}, clock)
	town(r.store)
	r.step()
	st := r.loop.Status()
	if !errors.Is(st.Err, errFault) || st.Failing != 0 || st.Problems.Total > 2 || !st.LastSync.IsZero() || !st.QueuedSince.IsZero() {
		t.Errorf("status: error %v, %d services fail, %d problems, last sync %s", st.Err, st.Failing, st.Problems.Total, st.LastSync)
	}
	fail = false
	r.settle()
	if st := r.loop.Status(); st.Err != nil || st.LastSync.IsZero() {
		t.Errorf("in the end: %v, last sync %s", st.Err, st.LastSync)
	}
	r.sameAs(r.fresh(), "settled")
}

// TestHealthCheckOfFailingService checks two healthCheckNodePorts. That of a service which cannot be
// programmed reports no local endpoints. That of another service reports its own as before.
func TestHealthCheckOfFailingService(t *testing.T) {
	s := newStubborn(t, roomy)
	balanced := func(i int) *Service {
		return numberedService(i).with(func(s *Service) {
			s.HealthCheckNodePort, s.ExternalLocal = uint16(32000+i), true
			s.Ports[0].NodePort = uint16(30000 + i)
			s.LoadBalancerIPs = addrs(fmt.Sprintf("1.1.1.%d", i))
		})
	}
	for i := 1; i <= 2; i++ {
		sl := numberedSlice(i, 0, 1)
		sl.Endpoints[0].Node = "me"
		s.store.SetService(balanced(i))
		s.store.SetSlice(sl)
	}
	local := func() (n []int) {
		for _, c := range s.heard.checks[len(s.heard.checks)-1] {
			n = append(n, c.LocalEndpoints)
		}
		return n
	}
	s.broken[svcName(numberedName(1))] = true
	s.run()
	if got := local(); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("while the first fails: %v local endpoints, want 0 and 1", got)
	}
	clear(s.broken)
	s.settle()
	if got := local(); !slices.Equal(got, []int{1, 1}) {
		t.Errorf("programmed: %v local endpoints, want 1 and 1", got)
	}
	// An older service takes its load-balancer IP and its node port: clients from outside cannot
	// reach it.
	s.store.SetService(service("old", "10.97.0.1", "p:80/TCP:30001").with(func(o *Service) {
		o.LoadBalancerIPs, o.Created = addrs("1.1.1.1"), time.Unix(1, 0)
	}))
	s.store.SetService(balanced(1).with(func(s *Service) { s.Created = time.Unix(2, 0) }))
	s.settle()
	if got := local(); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("without a frontend: %v local endpoints, want 0 and 1", got)
	}
	s.store.DeleteService(svcName(numberedName(1)))
	s.settle()
	if got := local(); !slices.Equal(got, []int{1}) || len(s.loop.checks.missing) != 0 {
		t.Errorf("deleted: %v local endpoints", got)
	}
}
