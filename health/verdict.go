package health

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"shunt/lb"
	"shunt/maps"
)

// pressure is the part of a map, in percent, from which on it is worth a
// warning: what is left must last until somebody has read it.
const pressure = 80

// Verdict is how the proxy and its node are, at one moment.
type Verdict struct {
	// Time is that moment; LastUpdated is when the maps last held everything
	// that was known, zero where they never did.
	Time, LastUpdated time.Time
	// Healthy: the proxy is in order, whatever the node is like.
	Healthy bool
	// NodeEligible: the node may be sent new traffic by a load balancer.
	NodeEligible bool
	// ProxyReasons say why it is not healthy, NodeReasons why not eligible;
	// Warnings what is not wrong yet, or is being put right.
	ProxyReasons, NodeReasons, Warnings []string
}

// checker comes to a Verdict by what its sources say.
type checker struct {
	timeout     time.Duration
	requireNode bool
	now         func() time.Time
	flows       FlowSource // nil: there are none
	source      atomic.Pointer[StatusSource]
}

func (c *checker) setSource(s StatusSource) { c.source.Store(&s) }

// status is the zero Status until there is a source.
func (c *checker) status() lb.Status {
	if s := c.source.Load(); s != nil {
		return (*s).Status()
	}
	return lb.Status{}
}

// fill says how full the maps are.
func (c *checker) fill(st lb.Status) []maps.Fill {
	if c.flows == nil {
		return st.Fill
	}
	return append(slices.Clone(st.Fill), c.flows.FlowStats().Fill)
}

// healthy is Verdict.Healthy alone, for those who are asked often.
func (c *checker) healthy() bool {
	reason, _ := c.proxy(c.status(), c.now())
	return reason == ""
}

// verdict reads all sources once.
func (c *checker) verdict() Verdict {
	st, now := c.status(), c.now()
	v := Verdict{Time: now}
	var reason string
	reason, v.LastUpdated = c.proxy(st, now)
	v.Healthy = reason == ""
	if !v.Healthy {
		v.ProxyReasons = append(v.ProxyReasons, reason)
	}
	reason = c.node(st.Node)
	v.NodeEligible = reason == ""
	if !v.NodeEligible {
		v.NodeReasons = append(v.NodeReasons, reason)
	}
	if st.Err != nil {
		v.Warnings = append(v.Warnings, "the last reconcile failed and will be tried again: "+st.Err.Error())
	}
	v.Warnings = append(v.Warnings, mapWarnings(c.fill(st))...)
	return v
}

// proxy says why the proxy is not in order, "" where it is, and when it was last
// up to date. A failed reconcile is no reason by itself: what it was for stays
// queued, and age is what counts.
func (c *checker) proxy(st lb.Status, now time.Time) (string, time.Time) {
	if !st.Synced {
		return "starting: Services and EndpointSlices are not in the maps yet", st.LastSync
	}
	if st.QueuedSince.IsZero() {
		return "", now
	}
	if age := now.Sub(st.QueuedSince); age > c.timeout {
		return fmt.Sprintf("a change has been waiting for %s to get into the maps, longer than %s",
			age.Round(time.Second), c.timeout), st.LastSync
	}
	return "", st.LastSync
}

// node says why this node should get no new traffic, "" where it may: KEP-3836
// lets load balancers drain a node that is going away.
func (c *checker) node(n *lb.Node) string {
	switch {
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

// mapWarnings names the maps that are nearly full, and what to do about it.
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

// underPressure gives how full a map is in percent, and whether that is much.
// A map of size 0 holds nothing and is never full.
func underPressure(f maps.Fill) (percent uint64, high bool) {
	if f.Size == 0 {
		return 0, false
	}
	percent = uint64(f.Used) * 100 / uint64(f.Size)
	return percent, percent >= pressure
}
