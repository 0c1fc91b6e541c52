// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"shunt/maps"
)

// conflict returns a problem of a numbered service at its own frontend.
func conflict(service, port int) Problem {
	return Problem{Service: svcName(numberedName(service)), Kind: maps.Conflict,
		Frontend: fe(fmt.Sprintf("1.1.1.1:%d", port), TCP), Owner: svcName("owner")}
}

// TestProblemTable checks that a problem is new once, keeps its time, and is removed when its
// finder no longer finds it, and that what another finder found for the same service stays.
func TestProblemTable(t *testing.T) {
	clock := newTestClock()
	table := newProblemTable(clock.now)
	name := svcName(numberedName(1))
	start := clock.t
	failed := func(text string) Problem {
		return Problem{Service: name, Port: "http", Protocol: TCP, Family: IPv4, Kind: maps.Failed, Error: text}
	}

	table.set(name, byClaims, []Problem{conflict(1, 80)})
	table.set(name, byWrites, []Problem{failed("first")})
	if fresh := table.takeFresh(); len(fresh) != 2 {
		t.Errorf("new are %+v, want two", fresh)
	}
	clock.advance(time.Minute)
	table.set(name, byWrites, []Problem{failed("second\nline")})
	if fresh := table.takeFresh(); len(fresh) != 0 {
		t.Errorf("a problem that goes on is new: %+v", fresh)
	}
	got := table.publish()
	want := []Problem{conflict(1, 80), failed("second; line")}
	want[0].Since, want[0].Attempts = start, 1
	want[1].Since, want[1].Attempts = start, 2
	if !slices.Equal(got.List, want) || got.Total != 2 || got.Services[maps.Conflict] != 1 || got.Services[maps.Failed] != 1 {
		t.Errorf("published is %+v, want %+v", got, want)
	}
	table.set(svcName("fine"), byWrites, nil)
	if again := table.publish(); again.Version != got.Version {
		t.Error("another version, and nothing has changed")
	}
	table.set(name, byClaims, nil)
	after := table.publish()
	if len(after.List) != 1 || after.List[0].Kind != maps.Failed || after.Version == got.Version {
		t.Errorf("without the conflict: %+v", after)
	}
	if !slices.Equal(got.List, want) {
		t.Errorf("an older snapshot has become %+v", got.List)
	}
	table.set(name, byWrites, nil)
	if last := table.publish(); last.Total != 0 || len(last.Services) != 0 || len(table.all) != 0 {
		t.Errorf("in the end: %+v, %d services remembered", last, len(table.all))
	}
	clock.advance(time.Minute)
	table.set(name, byWrites, []Problem{failed("again")})
	if p := table.publish().List[0]; !p.Since.Equal(clock.t) || p.Attempts != 1 || len(table.takeFresh()) == 0 {
		t.Errorf("one that comes again: %+v", p)
	}
}

// TestProblemsAreBounded checks that the list is bounded for each service and as a whole, that it
// counts the rest, and that no kind of problem is hidden by another kind.
func TestProblemsAreBounded(t *testing.T) {
	table := newProblemTable(newTestClock().now)
	const services = maxListed
	for s := range services {
		name := svcName(numberedName(s))
		found := []Problem{{Service: name, Kind: maps.Cut, Error: strings.Repeat("ä", maxProblemText)}}
		for port := range 100 {
			found = append(found, conflict(s, 100-port))
		}
		table.set(name, byClaims, found)
	}
	p := table.publish()
	if p.Total != services*101 || p.Services[maps.Conflict] != services || p.Services[maps.Cut] != services {
		t.Errorf("%d problems, of services %v, want %d of %d", p.Total, p.Services, services*101, services)
	}
	if len(p.List) != maxListed {
		t.Fatalf("%d are listed, want %d", len(p.List), maxListed)
	}
	if !slices.IsSortedFunc(p.List, func(a, b Problem) int { return a.Service.compare(b.Service) }) {
		t.Error("not sorted by service")
	}
	first := p.List[:maxPerKind+1]
	for i, want := range []int{1, 2, 3, 4} {
		if got := first[i].Frontend; got != fe(fmt.Sprintf("1.1.1.1:%d", want), TCP) {
			t.Errorf("conflict %d is at %s, want port %d", i, got, want)
		}
	}
	if last := first[maxPerKind-1]; last.More != 100-maxPerKind {
		t.Errorf("the last conflict counts %d more, want %d", last.More, 100-maxPerKind)
	}
	if cut := first[maxPerKind]; cut.Kind != maps.Cut || len(cut.Error) > maxProblemText || !strings.HasSuffix(cut.Error, "ä…") {
		t.Errorf("the cut is %+v", cut)
	}
}

// TestFailedServiceIsAProblem checks that a service that cannot be programmed has a problem for
// each of its ports, by kind, until it is programmed.
func TestFailedServiceIsAProblem(t *testing.T) {
	for _, c := range []struct {
		kind ProblemKind
		err  error
	}{
		{maps.Failed, errFault},
		{maps.NoRoom, roomy.NewFullError(maps.NameServices)},
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			clock := newTestClock()
			fail := true
			r := newRig(t, &maps.Faulty{Tables: maps.NewFake(roomy), Fail: func(method string) error {
				if fail && method == "SetFrontend" {
					return c.err
				}
				return nil
			}}, clock)
			r.store.SetService(service("a", "10.96.0.1 fd96::1", "p:80/TCP"))
			r.step()
			got := r.loop.Status().Problems
			if got.Services[c.kind] != 1 || len(got.Services) != 1 || len(got.List) == 0 {
				t.Fatalf("%+v", got)
			}
			for _, p := range got.List {
				if p.Service != svcName("a") || p.Family == 0 || p.Kind != c.kind || !strings.Contains(p.Error, c.err.Error()) {
					t.Errorf("%+v", p)
				}
			}
			if !slices.ContainsFunc(got.List, func(p Problem) bool { return p.Port == "p" && p.Protocol == TCP }) {
				t.Errorf("no problem of port p: %+v", got.List)
			}
			if n := len(r.heard.problems); n != len(got.List) {
				t.Errorf("OnProblem was called %d times for %d problems", n, len(got.List))
			}
			r.step()
			if n := len(r.heard.problems); n != len(got.List) {
				t.Errorf("OnProblem was called again: %d times for %d problems", n, len(got.List))
			}
			fail = false
			r.settle()
			if p := r.loop.Status().Problems; p.Total != 0 || len(p.List) != 0 {
				t.Errorf("programmed, and there are still problems: %+v", p)
			}
		})
	}
}
