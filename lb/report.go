package lb

import (
	"cmp"
	"errors"
	"maps"
	"slices"

	"go.uber.org/zap"

	shuntmaps "shunt/maps"
)

// begin takes what is to be done. Status counts every change, at each moment, as
// queued or as being worked on; it gets numbers, since the reconcile goes on to write
// to what it took.
func (l *Loop) begin() changes {
	l.mu.Lock()
	defer l.mu.Unlock()
	todo := l.o.Store.take()
	todo.merge(l.pending)
	l.working, l.workingOn = todo.since, todo.count()
	return todo
}

// end notes what a reconcile came to and tells those who want to know.
func (l *Loop) end(failed changes, report Report, node *Node) {
	report.Ended = l.o.Now()
	report.Writes, l.r.writes = l.r.writes, shuntmaps.Writes{}
	stale := l.r.stale
	l.r.stale = Stale{}
	l.pending = failed
	l.retries++
	if failed.empty() {
		l.pending = changes{}
		l.retries = 0
	}
	l.note(report, node)
	if report.Err != nil {
		l.o.Log.Error("not everything could be programmed; what was stays in effect, the rest is tried again",
			zap.Error(report.Err), zap.Int("services", report.Failed), zap.Duration("retry_in", l.backoff()))
	}
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
		l.working = l.pending.since
	} // else the first changes are not in effect before onSynced
	l.workingOn = l.pending.count()
	l.status.Synced = l.status.Synced || l.o.OnSynced == nil // else see onSynced
	l.status.Err = report.Err
	if short := l.r.shortErr(); short != nil {
		l.status.Err = errors.Join(report.Err, short)
	}
	l.status.Node = node
	l.status.NoLocalEndpoints = maps.Clone(l.r.noLocal)
	l.status.Fill = l.fill()
	l.status.NodePortAddrs = l.r.nodePortAddrs()
	l.status.Problems = l.r.problems.publish()
	if l.pending.empty() {
		l.status.LastSync = report.Ended
	}
}

// Status is a snapshot; safe from any goroutine.
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

// fill gives how full the maps are that the loop fills.
func (l *Loop) fill() []shuntmaps.Fill {
	sizes := l.o.Tables.Sizes()
	return []shuntmaps.Fill{
		{Map: shuntmaps.NameServices, Flag: shuntmaps.FlagServices, Used: uint32(l.r.entries), Size: sizes.Services},
		{Map: shuntmaps.NameSlots, Flag: shuntmaps.FlagSlots, Used: l.r.slots.used, Size: sizes.Slots},
		{Map: shuntmaps.NameBackends, Flag: shuntmaps.FlagBackends, Used: l.r.records.used, Size: sizes.Backends},
		{Map: shuntmaps.NameSources, Flag: shuntmaps.FlagSources, Used: uint32(l.r.sources + len(l.r.cidrs)), Size: sizes.Sources},
	}
}

// healthChecks keeps what healthCheckNodePort servers must say.
type healthChecks struct {
	byService map[ServiceName][]HealthCheck
	changed   bool
}

func (h *healthChecks) update(name ServiceName, svc *Service, sls []*EndpointSlice, at place) {
	var now []HealthCheck
	if svc != nil && svc.HealthCheckNodePort != 0 {
		for _, family := range []Family{IPv4, IPv6} {
			if _, has := ofFamily(svc.ClusterIPs, family); has {
				now = append(now, HealthCheck{Service: name, Family: family, Port: svc.HealthCheckNodePort,
					LocalEndpoints: localReady(svc, sls, family, at)})
			}
		}
	}
	if slices.Equal(h.byService[name], now) {
		return
	}
	h.changed = true
	if now == nil {
		delete(h.byService, name)
		return
	}
	if h.byService == nil {
		h.byService = map[ServiceName][]HealthCheck{}
	}
	h.byService[name] = now
}

// take gives all checks, sorted by service and family, if any changed since it was asked.
func (h *healthChecks) take() ([]HealthCheck, bool) {
	if !h.changed {
		return nil, false
	}
	h.changed = false
	all := slices.Concat(slices.Collect(maps.Values(h.byService))...)
	slices.SortFunc(all, func(a, b HealthCheck) int {
		return cmp.Or(cmp.Compare(a.Service.String(), b.Service.String()), cmp.Compare(a.Family, b.Family))
	})
	return all, true
}
