// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/time/rate"

	"shunt/lb"
	"shunt/maps"
	"shunt/watcher"
)

var taken = maps.Problem{
	Service: maps.Name{Namespace: "shop", Name: "web", Port: "http", Protocol: 6, Family: 4}, Kind: maps.Conflict,
	Frontend:       maps.NewFrontendKey(netip.MustParseAddr("1.1.1.1"), 80, 6),
	OwnerNamespace: "other", Owner: "old", Since: time.Now().Add(-time.Minute), Attempts: 3,
}

var full = maps.Problem{
	Service: maps.Name{Namespace: "shop", Name: "api"}, Kind: maps.NoRoom, Text: "map backends is full", Since: time.Now(), Attempts: 9,
}

// TestProblemsInStatus: status shows each problem with its error, and the number of those
// that it does not show.
func TestProblemsInStatus(t *testing.T) {
	s := problemsStatus{Total: 500}
	for range 30 {
		s.List = append(s.List, newProblemStatus(taken), newProblemStatus(full))
	}
	var b bytes.Buffer
	s.table(&b)
	for _, want := range []string{
		"500 problems",
		"shop/web:http/TCP IPv4\tconflict: 1.1.1.1:80/TCP is not served: Service other/old has it; since ",
		"attempts: 3\n",
		"shop/api\tno_room: map backends is full; since ",
		"and 480 more",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("status does not say %q:\n%s", want, b.String())
		}
	}
	if n := strings.Count(b.String(), "\n"); n != 1+shownProblems+1 {
		t.Errorf("%d lines", n)
	}
	b.Reset()
	(&problemsStatus{}).table(&b)
	if strings.Contains(b.String(), "more") || !strings.Contains(b.String(), "all are served") {
		t.Errorf("without a problem: %s", b.String())
	}
}

// TestProblemsInServices: services shows a problem at its frontend or at its Service.
func TestProblemsInServices(t *testing.T) {
	any := func(netip.AddrPort) bool { return true }
	frontend := func(service, port, address string) frontendReport {
		r := frontendReport{Namespace: "shop", Service: service, PortName: port, Protocol: "TCP", Kind: "ClusterIP", InsidePolicy: "Cluster", OutsidePolicy: "Cluster"}
		r.setAddress(netip.MustParseAddrPort(address))
		return r
	}
	list := func() []frontendReport {
		return []frontendReport{frontend("web", "http", "10.96.0.1:80"), frontend("api", "x", "10.96.0.2:80"), frontend("api", "y", "[fd96::2]:80")}
	}
	table := func(list []frontendReport) string {
		var b bytes.Buffer
		servicesTable(&b, list)
		return b.String()
	}
	if s := table(list()); strings.Contains(s, "PROBLEM") {
		t.Errorf("a column without use:\n%s", s)
	}
	got := addProblems(list(), []maps.Problem{taken, full}, any, true)
	if len(got) != 4 || got[0].Problem != "" || got[1].Problem != "no_room: map backends is full" || got[2].Problem != got[1].Problem ||
		got[3].Problem != "conflict: 1.1.1.1:80/TCP is not served: Service other/old has it" || got[3].Kind != notServed {
		t.Errorf("%+v", got)
	}
	if s := table(got); !strings.Contains(s, "1.1.1.1:80/TCP") || !strings.Contains(s, "not served") || !strings.Contains(s, "PROBLEM") {
		t.Errorf("the table:\n%s", s)
	}
	port := full // with one port and family: the other port's frontend has no problem
	port.Service.Port, port.Service.Protocol, port.Service.Family = "y", 6, 6
	if got := addProblems(list(), []maps.Problem{port}, any, true); len(got) != 3 || got[1].Problem != "" || got[2].Problem == "" {
		t.Errorf("of port y: %+v", got)
	}
	gone := full
	gone.Service.Name = "gone"
	if got := addProblems(list(), []maps.Problem{gone}, any, true); len(got) != 4 || got[3].Service != "gone" || got[3].Address != "" ||
		!strings.HasPrefix(frontendText(got[3]), "none") {
		t.Errorf("a Service of which nothing is served: %+v", got)
	}
	match, err := parseMatch("1.1.1.1")
	if err != nil {
		t.Fatal(err)
	}
	if got := addProblems(nil, []maps.Problem{gone, taken}, match, false); len(got) != 1 || got[0].Address != "1.1.1.1" {
		t.Errorf("of one address: %+v", got)
	}
}

// TestProblemEvents: each problem has one Event, up to the limit; the others are counted.
func TestProblemEvents(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	type event struct {
		service      lb.ServiceName
		reason, note string
	}
	var events []event
	r := &problemReporter{log: zap.New(core), node: "me", limiter: rate.NewLimiter(0, 3),
		warn: func(s lb.ServiceName, reason, note string) { events = append(events, event{s, reason, note}) }}
	name := lb.ServiceName{Namespace: "shop", Name: "web"}
	problem := func(kind lb.ProblemKind) lb.Problem {
		return lb.Problem{Service: name, Kind: kind, Error: fmt.Sprintf("because of %s", kind)}
	}
	for _, kind := range maps.ProblemKinds() {
		r.found(problem(kind))
	}
	if len(events) != 3 || r.unsaid != 2 {
		t.Fatalf("%d events, %d not recorded, want 3 and 2: %v", len(events), r.unsaid, events)
	}
	want := event{name, watcher.EventFrontendConflict, "node me: because of conflict"}
	if events[0] != want {
		t.Errorf("the first event is %+v, want %+v", events[0], want)
	}
	r.limiter = rate.NewLimiter(rate.Inf, 1)
	r.found(problem(maps.Failed))
	if len(events) != 4 || logs.FilterField(zap.Int("problems", 2)).Len() != 1 || r.unsaid != 0 {
		t.Errorf("%d events, logged: %v", len(events), logs.All())
	}
	reasons := map[string]bool{}
	for _, kind := range maps.ProblemKinds() {
		reasons[problemEvent(kind)] = true
	}
	if len(reasons) != len(maps.ProblemKinds()) {
		t.Errorf("kinds share reasons: %v", reasons)
	}
	r.warn = nil
	r.found(problem(maps.Cut)) // Events can't be recorded
}
