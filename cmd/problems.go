// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"shunt/lb"
	"shunt/maps"
	"shunt/watcher"
)

// Limits of the Events about problems of Services: a burst of problemEvents, then one every
// problemEventPeriod. Without a limit one Service could cause thousands of Events.
const (
	problemEvents      = 50
	problemEventPeriod = 2 * time.Second
)

// problemReporter records the problems that the loop reports, as Events and in map problems.
// Only the reconcile goroutine calls it.
type problemReporter struct {
	log    *zap.Logger
	node   string
	kernel *maps.Kernel
	// warn records an Event; nil without an API server.
	warn    func(service lb.ServiceName, reason, note string)
	limiter *rate.Limiter
	// unsaid is the number of Events that the limiter has refused since the last recorded
	// Event.
	unsaid int
	// written is the version in map problems. It is nil at first: the map may contain the
	// problems of an earlier daemon.
	written *uint64
}

func newProblemReporter(d *daemon, src *source) *problemReporter {
	return &problemReporter{log: d.log, node: d.cfg.NodeName, kernel: d.kernel, warn: src.warn,
		limiter: rate.NewLimiter(rate.Every(problemEventPeriod), problemEvents)}
}

// found records an Event for a new problem on the problem's Service, if the limiter allows.
func (r *problemReporter) found(p lb.Problem) {
	if r.warn == nil {
		return
	}
	if !r.limiter.Allow() {
		r.unsaid++
		return
	}
	if r.unsaid > 0 {
		r.log.Warn("no Events were recorded for some problems of Services: there are too many; `shunt status` lists them",
			zap.Int("problems", r.unsaid))
		r.unsaid = 0
	}
	said := newProblemStatus(newProblemRecord(p))
	r.warn(p.Service, problemEvent(p.Kind), fmt.Sprintf("node %s: %s", r.node, said.text()))
}

// write replaces the contents of map problems if the version has changed.
func (r *problemReporter) write(p lb.Problems) {
	if r.written != nil && *r.written == p.Version {
		return
	}
	r.written = &p.Version
	list := make([]maps.Problem, 0, min(len(p.List), r.kernel.ProblemRoom()))
	for _, one := range p.List[:cap(list)] {
		list = append(list, newProblemRecord(one))
	}
	r.kernel.SetProblems(list, p.Total)
}

func problemEvent(kind lb.ProblemKind) string {
	switch kind {
	case maps.Conflict:
		return watcher.EventFrontendConflict
	case maps.Cut:
		return watcher.EventTooManyFrontends
	case maps.NoRoom:
		return watcher.EventNoRoom
	case maps.Refused:
		return watcher.EventFrontendRefused
	}
	return watcher.EventNotProgrammed
}

func newProblemRecord(p lb.Problem) maps.Problem {
	return maps.Problem{
		Service: maps.Name{Namespace: p.Service.Namespace, Name: p.Service.Name, Port: p.Port,
			Protocol: uint8(p.Protocol), Family: uint8(p.Family)},
		Kind: p.Kind, Frontend: p.Frontend, OwnerNamespace: p.Owner.Namespace, Owner: p.Owner.Name,
		Text: p.Error, Since: p.Since, Attempts: p.Attempts, More: p.More,
	}
}

// problemStatus is one problem as `shunt status -o json` prints it.
type problemStatus struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	// PortName, Protocol and Family are empty if the problem concerns the whole Service.
	PortName string `json:"portName,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	Family   string `json:"family,omitempty"`
	// Frontend is empty if the problem does not concern one frontend. Owner is the Service
	// to which the frontend belongs.
	Frontend string    `json:"frontend,omitempty"`
	Owner    string    `json:"owner,omitempty"`
	Error    string    `json:"error,omitempty"`
	Since    time.Time `json:"since"`
	Attempts uint32    `json:"attempts"`
	// More is the number of further problems of this kind and Service.
	More uint32 `json:"more,omitempty"`
}

// problemsStatus is what `shunt status` reports about problems of Services.
type problemsStatus struct {
	// Total is the number of all problems; List contains the first of them.
	Total int             `json:"total"`
	List  []problemStatus `json:"list"`
}

func readProblems(kernel *maps.Kernel) problemsStatus {
	list, total := kernel.Problems()
	s := problemsStatus{Total: total, List: []problemStatus{}}
	for _, p := range list {
		s.List = append(s.List, newProblemStatus(p))
	}
	return s
}

func newProblemStatus(p maps.Problem) problemStatus {
	s := problemStatus{Kind: p.Kind.String(), Namespace: p.Service.Namespace, Service: p.Service.Name, PortName: p.Service.Port,
		Error: p.Text, Since: p.Since, Attempts: p.Attempts, More: p.More}
	if p.Service.Protocol != 0 {
		s.Protocol = maps.ProtocolName(p.Service.Protocol)
	}
	if p.Service.Family != 0 {
		s.Family = lb.Family(p.Service.Family).String()
	}
	if p.Frontend != (maps.FrontendKey{}) {
		s.Frontend = p.Frontend.String()
	}
	if p.Owner != "" {
		s.Owner = p.OwnerNamespace + "/" + p.Owner
	}
	return s
}

// name returns the Service, with the port if the problem concerns one port.
func (p *problemStatus) name() string {
	name := p.Namespace + "/" + p.Service
	if p.PortName != "" {
		name += ":" + p.PortName
	}
	if p.Protocol != "" {
		name += "/" + p.Protocol
	}
	if p.Family != "" {
		name += " " + p.Family
	}
	return name
}

// text returns the description of the problem, without the Service's name.
func (p *problemStatus) text() string {
	var parts []string
	if p.Frontend != "" {
		parts = append(parts, p.Frontend+" is not served")
	}
	switch {
	case p.Error != "":
		parts = append(parts, p.Error)
	case p.Owner != "":
		parts = append(parts, "Service "+p.Owner+" has it")
	}
	text := strings.Join(parts, ": ")
	if text == "" {
		text = p.Kind
	}
	if p.More > 0 {
		text += fmt.Sprintf(" (and %d more of this Service)", p.More)
	}
	return text
}

// shownProblems is the maximum number of problems in the table of `shunt status`.
const shownProblems = 20

func (s *problemsStatus) table(w io.Writer) {
	if s.Total == 0 {
		fmt.Fprintf(w, "Services:\tall are served as they ask\n")
		return
	}
	fmt.Fprintf(w, "Services:\t%s\n", counted(s.Total, "problem", "problems"))
	shown := s.List[:min(len(s.List), shownProblems)]
	lines := 0
	for _, p := range shown {
		fmt.Fprintf(w, "  %s\t%s: %s; since %s, attempts: %d\n", p.name(), p.Kind, p.text(), timeText(&p.Since), p.Attempts)
		lines += 1 + int(p.More)
	}
	if more := s.Total - lines; more > 0 {
		fmt.Fprintf(w, "  and %d more\t`shunt status -o json` lists more\n", more)
	}
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// addProblems sets Problem in the reports of the frontends that a problem concerns. It adds a
// report for each frontend that is not served and, if all is set, for each Service that has a
// problem and no frontend.
func addProblems(list []frontendReport, problems []maps.Problem, match func(netip.AddrPort) bool, all bool) []frontendReport {
	for _, p := range problems {
		text := newProblemStatus(p)
		if p.Frontend == (maps.FrontendKey{}) {
			noted := false
			for i := range list {
				if of(&list[i], p.Service) {
					list[i].Problem, noted = text.Kind+": "+text.text(), true
				}
			}
			if noted || !all {
				continue
			}
		} else if !match(p.Frontend.AddrPort()) {
			continue
		}
		list = append(list, unserved(p))
	}
	return list
}

// of reports whether a frontend belongs to the Service in n, and to the port in n if n has one.
func of(r *frontendReport, n maps.Name) bool {
	return r.Namespace == n.Namespace && r.Service == n.Name &&
		(n.Family == 0 || r.Family == lb.Family(n.Family).String()) &&
		(n.Protocol == 0 || r.PortName == n.Port && r.Protocol == maps.ProtocolName(n.Protocol))
}

// notServed is the Kind of a frontend that a Service asks for and that is not served.
const notServed = "none"

// unserved returns the report of a frontend that is not served. The report's address is empty
// if the problem has no frontend.
func unserved(p maps.Problem) frontendReport {
	s := newProblemStatus(p)
	r := frontendReport{Namespace: s.Namespace, Service: s.Service, PortName: s.PortName, Protocol: s.Protocol, Family: s.Family,
		Kind: notServed, Problem: s.Kind + ": " + s.text(), Inside: []backendReport{}, Outside: []backendReport{}}
	if p.Frontend != (maps.FrontendKey{}) {
		ap := p.Frontend.AddrPort()
		r.setAddress(ap)
		r.Protocol = maps.ProtocolName(p.Frontend.Protocol)
	}
	return r
}

// anyProblem reports whether a frontend has a problem. The table has a column for problems only
// in that case.
func anyProblem(list []frontendReport) bool {
	return slices.ContainsFunc(list, func(r frontendReport) bool { return r.Problem != "" })
}
