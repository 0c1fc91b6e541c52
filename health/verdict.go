// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	stdmaps "maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"shunt/lb"
	"shunt/maps"
)

// pressure is the fill of a map, in percent, from which on there is a warning. The free
// entries must suffice until an operator has read the warning.
const pressure = 80

// Verdict is the health of the proxy and of its node, at one moment.
type Verdict struct {
	// Time is that moment. LastUpdated is when the maps last contained every known object,
	// zero if they never did.
	Time, LastUpdated time.Time
	// Healthy is true if the proxy makes progress or has nothing to do, so that a restart
	// would not help.
	Healthy bool
	// Serving is true if the maps that this daemon or an earlier one programmed are in
	// effect.
	Serving bool
	// NodeEligible is true if load balancers may send new traffic to the node.
	NodeEligible bool
	// ProxyReasons are the reasons why the proxy is not Healthy, StartReasons why it is
	// not Serving, NodeReasons why the node is not eligible. Warnings are faults that do
	// not make the proxy unhealthy. Only Details name objects of the cluster's tenants:
	// they are for clients that may read the metrics.
	ProxyReasons, StartReasons, NodeReasons, Warnings, Details []string
}

// checker makes a Verdict from its sources.
type checker struct {
	timeout     time.Duration
	requireNode bool
	now         func() time.Time
	flows       FlowSource // nil: there are none
	hooks       HookSource // nil: there are none
	// watches is nil where there is no API server.
	watches func() []Watch
	// adopted is set if the maps of an earlier daemon were adopted and are in effect.
	adopted atomic.Bool
	source  atomic.Pointer[StatusSource]
}

func (c *checker) setSource(s StatusSource) { c.source.Store(&s) }

// status returns the source's status, the zero Status until there is a source.
func (c *checker) status() lb.Status {
	if s := c.source.Load(); s != nil {
		return (*s).Status()
	}
	return lb.Status{}
}

// fill returns the number of used entries and the size of each map.
func (c *checker) fill(st lb.Status) []maps.Fill {
	if c.flows == nil {
		return st.Fill
	}
	return append(slices.Clone(st.Fill), c.flows.FlowStats().Fill)
}

// serving reports whether a Verdict would be Healthy and Serving. It costs less than
// verdict.
func (c *checker) serving() bool {
	st := c.status()
	reason, _ := c.proxy(st, c.now())
	return reason == "" && c.inEffect(st)
}

// inEffect reports whether programmed maps are in effect: those of this daemon or, while it
// waits for the API server, those of an earlier daemon.
func (c *checker) inEffect(st lb.Status) bool { return st.Synced || c.adopted.Load() }

// verdict reads all sources once.
func (c *checker) verdict() Verdict {
	st, now := c.status(), c.now()
	v := Verdict{Time: now}
	var reason string
	reason, v.LastUpdated = c.proxy(st, now)
	if !st.Synced {
		v.LastUpdated = time.Time{} // what was written is not in effect yet
	}
	v.Healthy = reason == ""
	if !v.Healthy {
		v.ProxyReasons = append(v.ProxyReasons, reason)
	}
	if v.Serving = c.inEffect(st); !v.Serving {
		v.StartReasons = append(v.StartReasons, "starting: Services and EndpointSlices are not in the maps yet")
	} else if !st.Synced {
		v.Warnings = append(v.Warnings,
			"starting: what an earlier daemon programmed is in effect; Services and EndpointSlices have not been read yet")
	}
	reason = c.node(st)
	v.NodeEligible = reason == ""
	if !v.NodeEligible {
		v.NodeReasons = append(v.NodeReasons, reason)
	}
	if st.Err != nil {
		v.Warnings = append(v.Warnings, "the last reconcile failed in part and will be tried again: see `shunt status`")
		v.Details = append(v.Details, "the last reconcile failed and will be tried again: "+st.Err.Error())
	}
	if st.Failing > 0 { // without their names: warnings are in public answers
		v.Warnings = append(v.Warnings, fmt.Sprintf("%d Services could not be brought into the maps, and are tried again: "+
			"`shunt status` on the node names them", st.Failing))
	}
	if st.Exceptions > st.ExceptionRoom {
		v.Warnings = append(v.Warnings, fmt.Sprintf("addresses that no Service has are not refused: of %d Services' addresses that are "+
			"not in the maps there is room to except %d; start shunt run with a larger %s",
			st.Exceptions, st.ExceptionRoom, maps.FlagSources))
	}
	v.Warnings = append(v.Warnings, c.watchWarnings()...)
	v.Warnings = append(v.Warnings, mapWarnings(c.fill(st))...)
	v.Warnings = append(v.Warnings, c.hookWarnings()...)
	return v
}

// proxy returns the reason why the proxy is not healthy, "" if it is, and when the maps were
// last up to date. A change that waits for longer than timeout makes the proxy unhealthy. A
// change that was tried and failed does not: it is a problem of one Service, not of the loop.
func (c *checker) proxy(st lb.Status, now time.Time) (string, time.Time) {
	if st.QueuedSince.IsZero() {
		if !st.Synced {
			return "", st.LastSync // nothing was read yet
		}
		return "", now
	}
	if age := now.Sub(st.QueuedSince); age > c.timeout {
		return fmt.Sprintf("a change has been waiting for %s to get into the maps, longer than %s",
			age.Round(time.Second), c.timeout), st.LastSync
	}
	return "", st.LastSync
}

// node returns the reason why this node should get no new traffic, "" if it may. By KEP-3836
// load balancers drain a node that is being deleted.
func (c *checker) node(st lb.Status) string {
	n := st.Node
	switch {
	case n == nil && c.requireNode && !st.Synced && c.adopted.Load():
		return "" // nothing was read yet: load balancers must not drain a node that works
	case n == nil && c.requireNode:
		return "this Node was not seen yet in the API server, or is gone from it"
	case n == nil:
		return ""
	case n.Deleting:
		return "Node " + n.Name + " is being deleted"
	case n.Tainted:
		return "Node " + n.Name + " carries the taint ToBeDeletedByClusterAutoscaler"
	}
	return ""
}

// hookWarnings returns a warning for each hook that is not in effect.
func (c *checker) hookWarnings() (warnings []string) {
	if c.hooks == nil {
		return nil
	}
	last := c.hooks.Last()
	for _, name := range slices.Sorted(stdmaps.Keys(last)) {
		if last[name] != "" {
			warnings = append(warnings, fmt.Sprintf("%s is not in effect as it should be: %s", name, last[name]))
		}
	}
	return warnings
}

// mapWarnings returns a warning for each map that is nearly full, with its flag.
func mapWarnings(fills []maps.Fill) []string {
	var warnings []string
	for _, f := range fills {
		if percent, high := underPressure(f); high {
			warnings = append(warnings, fmt.Sprintf("map %s is %d%% full, %d of %d: start shunt with a larger --%s",
				f.Map, percent, f.Used, f.Size, strings.TrimLeft(f.Flag, "-")))
		}
	}
	return warnings
}

// underPressure returns how full a map is, in percent, and reports whether that is at least
// pressure. For a map of size 0 it returns 0.
func underPressure(f maps.Fill) (percent uint64, high bool) {
	if f.Size == 0 {
		return 0, false
	}
	percent = uint64(f.Used) * 100 / uint64(f.Size)
	return percent, percent >= pressure
}
