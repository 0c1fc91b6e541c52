// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"errors"
	stdmaps "maps"
	"slices"
	"time"

	"shunt/maps"
)

// begin takes the changes, and the failures that are due. Status counts every change at each
// moment: as queued, in work, or failed. It keeps numbers, since the reconcile goes on to modify
// what it took.
func (l *Loop) begin(until time.Time, retries int) changes {
	l.mu.Lock()
	defer l.mu.Unlock()
	todo := l.o.Store.take()
	l.working, l.workingOn = todo.since, todo.count()
	l.workingOn.add(l.failed.count)
	l.failed.take(&todo, until, retries)
	return todo
}

// end publishes the result of a reconcile and makes the calls of LoopOptions.
func (l *Loop) end(report Report, node *Node) {
	report.Ended = l.o.Now()
	report.Writes, l.r.writes = l.r.writes, maps.Writes{}
	stale := l.r.stale
	l.r.stale = Stale{}
	l.note(report, node)
	for _, p := range l.r.problems.takeFresh() {
		if l.o.OnProblem != nil {
			l.o.OnProblem(p)
		}
	}
	if l.o.Observer != nil {
		l.o.Observer.Reconciled(report)
		if checks, changed := l.checks.take(); changed {
			l.o.Observer.SetHealthChecks(checks)
		}
	}
	if stale.Any() && l.o.OnStale != nil {
		l.o.OnStale(stale)
	}
	if !l.isSynced {
		l.isSynced = true
		close(l.synced)
	}
}

func (l *Loop) note(report Report, node *Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.status.Synced || l.o.OnSynced == nil {
		l.working = time.Time{} // failed changes were tried, too
	} // else the first changes take effect only in onSynced
	l.workingOn = l.failed.count
	l.status.Synced = l.status.Synced || l.o.OnSynced == nil // else onSynced sets it
	l.status.Err = errors.Join(l.failed.err(), l.r.shortErr())
	l.status.Node = node
	l.status.NoLocalEndpoints = stdmaps.Clone(l.r.noLocal)
	l.status.Fill = l.fill()
	l.status.Exceptions, l.status.ExceptionRoom = len(l.r.excepted.users), exceptionRoom(l.o.Tables.Sizes())
	l.status.NodePortAddrs = l.r.nodePortAddrs()
	l.status.Problems = l.r.problems.publish()
	l.status.Failing = l.status.Problems.Failing
	if l.failed.empty() {
		l.status.LastSync = report.Ended
	}
}

// Status returns a snapshot. It is safe to call from any goroutine.
func (l *Loop) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.QueuedSince = l.working
	pending := l.workingOn

	st := l.o.Store
	st.mu.Lock()
	defer st.mu.Unlock()
	pending.add(st.dirty.count())
	s.ServiceChangesPending, s.EndpointChangesPending = pending.service, pending.endpoints
	s.ServiceChanges, s.EndpointChanges = st.serviceChanges, st.endpointChanges
	s.LastQueued = st.lastQueued
	s.Node = st.node
	if st.synced && s.QueuedSince.IsZero() {
		s.QueuedSince = st.dirty.since
	}
	return s
}

// fill returns how full the maps are that the loop writes and whose size is a flag.
func (l *Loop) fill() []maps.Fill {
	return l.o.Tables.Sizes().FillOf(map[string]uint32{
		maps.NameServices: uint32(l.r.entries),
		maps.NameSlots:    l.r.slots.used,
		maps.NameBackends: l.r.records.used,
		maps.NameSources:  uint32(l.r.sources + len(l.r.cidrs) + len(l.r.excepted.held)),
	})
}

// healthChecks holds what the healthCheckNodePort servers answer.
type healthChecks struct {
	byService map[ServiceName][]HealthCheck
	// missing are services that clients from outside may not reach on this node by a family. They
	// report no local endpoints.
	missing map[servedBy]bool
	changed bool
	// ports counts changes of the set of healthCheckNodePorts.
	ports int
}

func (h *healthChecks) update(name ServiceName, svc *Service, ports *portIndex, at place) {
	var now []HealthCheck
	if svc != nil && svc.HealthCheckNodePort != 0 {
		for _, family := range []Family{IPv4, IPv6} {
			if _, has := ofFamily(svc.ClusterIPs, family); has {
				now = append(now, HealthCheck{Service: name, Family: family, Port: svc.HealthCheckNodePort,
					LocalEndpoints: localReady(svc, ports, family, at)})
			}
		}
	}
	if slices.Equal(h.byService[name], now) {
		return
	}
	h.changed = true
	if old := h.byService[name]; len(old) == 0 || len(now) == 0 || old[0].Port != now[0].Port {
		h.ports++
	}
	if now == nil {
		delete(h.byService, name)
		delete(h.missing, servedBy{name, IPv4})
		delete(h.missing, servedBy{name, IPv6})
		return
	}
	if h.byService == nil {
		h.byService = map[ServiceName][]HealthCheck{}
	}
	h.byService[name] = now
}

// servedBy is a service in one family.
type servedBy struct {
	service ServiceName
	family  Family
}

// programmed records whether clients from outside reach a service on this node.
func (h *healthChecks) programmed(name servedBy, ok bool) {
	if h.missing[name] == !ok {
		return
	}
	h.changed = true
	if ok {
		delete(h.missing, name)
		return
	}
	if h.missing == nil {
		h.missing = map[servedBy]bool{}
	}
	h.missing[name] = true
}

// take returns all checks, sorted by service and family; false if none changed since its last call.
func (h *healthChecks) take() ([]HealthCheck, bool) {
	if !h.changed {
		return nil, false
	}
	h.changed = false
	all := slices.Concat(slices.Collect(stdmaps.Values(h.byService))...)
	for i := range all {
		if h.missing[servedBy{all[i].Service, all[i].Family}] {
			all[i].LocalEndpoints = 0
		}
	}
	slices.SortFunc(all, func(a, b HealthCheck) int {
		return cmp.Or(cmp.Compare(a.Service.String(), b.Service.String()), cmp.Compare(a.Family, b.Family))
	})
	return all, true
}
