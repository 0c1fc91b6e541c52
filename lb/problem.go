// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"shunt/maps"
)

// ProblemKind says why a Service is not served as its object asks: maps.Conflict etc.
type ProblemKind = maps.ProblemKind

// Problem is a part of a Service that is not served as its object asks, and why.
type Problem struct {
	Service ServiceName
	// Port, Protocol and Family name the service port; zero where the problem concerns the whole
	// Service.
	Port     string
	Protocol Protocol
	Family   Family
	Kind     ProblemKind
	// Frontend is zero where the problem is not about one frontend.
	Frontend maps.FrontendKey
	// Owner is the Service that has the frontend (maps.Conflict only).
	Owner ServiceName
	// Error says what happened, and what can be done about it, if anything. At most maxProblemText
	// bytes.
	Error string
	// Since is when the problem was found first. Attempts counts how often the Service was looked
	// at since then with this result.
	Since    time.Time
	Attempts uint32
	// More counts further problems of this kind and Service that are not listed.
	More uint32
}

// Problems is a snapshot of all known problems. It is immutable.
type Problems struct {
	// Version increases with every change of the other fields.
	Version uint64
	// List is sorted by Service, with at most maxListed entries.
	List []Problem
	// Total counts all problems.
	Total int
	// Services counts, for each kind, the Services with such problems.
	Services map[ProblemKind]int
	// Failing counts the Services with problems of kind maps.Failed or maps.NoRoom.
	Failing int
}

const (
	// maxPerKind bounds the problems of one kind of one Service that are listed.
	maxPerKind = 4
	// maxListed bounds Problems.List.
	maxListed = 1024
	// maxProblemText bounds Problem.Error, in bytes.
	maxProblemText = 512
)

// finder is a part of the loop that finds problems of a Service. Each finder replaces its own
// earlier findings only.
type finder int

const (
	// byClaims: what the Service may have, decided from the objects and the sizes of the maps.
	byClaims finder = iota
	// byWrites: what could not be written to the maps.
	byWrites
	finders
)

// serviceProblems are the problems of one Service by finder, each list sorted and
// bounded.
type serviceProblems struct {
	of [finders][]Problem
}

// problemTable holds the problems of all Services. Only the loop's goroutine uses it.
type problemTable struct {
	now     func() time.Time
	all     map[ServiceName]*serviceProblems
	changed bool
	fresh   []Problem
	last    Problems
}

func newProblemTable(now func() time.Time) *problemTable {
	return &problemTable{now: now, all: map[ServiceName]*serviceProblems{}}
}

// set replaces the problems of a Service that one finder found. It sets Since and Attempts.
func (t *problemTable) set(name ServiceName, by finder, found []Problem) {
	sp := t.all[name]
	if sp == nil {
		if len(found) == 0 {
			return
		}
		sp = &serviceProblems{}
		t.all[name] = sp
	}
	before := sp.of[by]
	if len(before) == 0 && len(found) == 0 {
		return
	}
	t.changed = true
	now := t.now()
	found = bound(found)
	for i := range found {
		p := &found[i]
		p.Since, p.Attempts = now, 1
		if old := slices.IndexFunc(before, p.same); old >= 0 {
			p.Since, p.Attempts = before[old].Since, before[old].Attempts+1
		} else {
			t.fresh = append(t.fresh, *p)
		}
	}
	sp.of[by] = found
	if sp.empty() {
		delete(t.all, name)
	}
}

// takeFresh returns the problems that are new since its last call.
func (t *problemTable) takeFresh() []Problem {
	fresh := t.fresh
	t.fresh = nil
	return fresh
}

// publish returns a snapshot for any goroutine. It is cheap where nothing has changed.
func (t *problemTable) publish() Problems {
	if !t.changed {
		return t.last
	}
	t.changed = false
	p := Problems{Version: t.last.Version + 1, Services: map[ProblemKind]int{}}
	names := make([]ServiceName, 0, len(t.all))
	for name, sp := range t.all {
		names = append(names, name)
		p.Total += sp.total()
		kinds := sp.kinds()
		for kind := range kinds {
			p.Services[kind]++
		}
		if kinds[maps.Failed] || kinds[maps.NoRoom] {
			p.Failing++
		}
	}
	slices.SortFunc(names, ServiceName.compare)
	for _, name := range names {
		for _, list := range t.all[name].of {
			p.List = append(p.List, list[:min(len(list), maxListed-len(p.List))]...)
		}
		if len(p.List) == maxListed {
			break
		}
	}
	t.last = p
	return p
}

// same reports whether two problems of one Service are the same one, found again.
func (p *Problem) same(o Problem) bool {
	return p.Kind == o.Kind && p.Frontend == o.Frontend && p.Port == o.Port && p.Protocol == o.Protocol &&
		p.Family == o.Family && p.Owner == o.Owner
}

// bound sorts a list, shortens its texts, and keeps maxPerKind of each kind. More of the last one
// kept counts the others.
func bound(list []Problem) []Problem {
	slices.SortFunc(list, compareProblems)
	var kept []Problem // a new slice, so that the others are not kept in memory
	of := 0            // how many of this kind so far
	for i, p := range list {
		if i > 0 && p.Kind != list[i-1].Kind {
			of = 0
		}
		if of++; of > maxPerKind {
			kept[len(kept)-1].More++
			continue
		}
		p.Error = maps.CutText(strings.ReplaceAll(p.Error, "\n", "; "), maxProblemText)
		kept = append(kept, p)
	}
	return kept
}

func (s *serviceProblems) empty() bool {
	return !slices.ContainsFunc(s.of[:], func(list []Problem) bool { return len(list) > 0 })
}

func (s *serviceProblems) total() int {
	n := 0
	for _, list := range s.of {
		for i := range list {
			n += 1 + int(list[i].More)
		}
	}
	return n
}

// kinds returns the kinds of the listed problems.
func (s *serviceProblems) kinds() map[ProblemKind]bool {
	kinds := map[ProblemKind]bool{}
	for _, list := range s.of {
		for i := range list {
			kinds[list[i].Kind] = true
		}
	}
	return kinds
}

func compareProblems(a, b Problem) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Family, b.Family), cmp.Compare(a.Port, b.Port),
		cmp.Compare(a.Protocol, b.Protocol), a.Frontend.AddrPort().Compare(b.Frontend.AddrPort()))
}

// writeProblem returns the problem for an error at a service port.
func writeProblem(key portKey, err error) Problem {
	kind := maps.Failed
	if onlyFull(err) {
		kind = maps.NoRoom
	}
	return Problem{Service: key.service, Port: key.port, Protocol: key.protocol, Family: key.family,
		Kind: kind, Error: err.Error()}
}
