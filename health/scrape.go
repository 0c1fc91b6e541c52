// SPDX-License-Identifier: Apache-2.0

package health

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"shunt/lb"
	"shunt/maps"
)

// The metrics that are read from their sources at each scrape.
var (
	lastTimestamp = desc("kubeproxy_sync_proxy_rules_last_timestamp_seconds",
		"When the maps last held everything that was known, as a Unix time in seconds; 0 if they never did.")
	lastQueued = desc("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
		"When the newest change was taken, as a Unix time in seconds; 0 before the first.")
	endpointChanges = desc("kubeproxy_sync_proxy_rules_endpoint_changes_total",
		"Changes of EndpointSlices that were taken.")
	endpointChangesPending = desc("kubeproxy_sync_proxy_rules_endpoint_changes_pending",
		"Changes of EndpointSlices that are not in the maps yet.")
	serviceChanges = desc("kubeproxy_sync_proxy_rules_service_changes_total",
		"Changes of Services that were taken.")
	serviceChangesPending = desc("kubeproxy_sync_proxy_rules_service_changes_pending",
		"Changes of Services that are not in the maps yet.")
	noLocalEndpoints = desc("kubeproxy_sync_proxy_rules_no_local_endpoints_total",
		"Service ports with a Local traffic policy and no usable endpoint on this node, of those that have endpoints.",
		"ip_family", "traffic_policy")
	servicesFailing = desc("shunt_services_failing",
		"Services that could not be brought into the maps, and are tried again.")
	serviceProblems = desc("shunt_service_problems",
		"Services that are not served as they ask, by the kind of problem; one may have several.", "kind")
	exceptions = desc("shunt_service_cidr_exceptions",
		"Addresses of Services that are not in the maps: another proxy serves them, or they find no room. "+
			"They are excepted from the service CIDRs.")
	exceptionsMax = desc("shunt_service_cidr_exceptions_max",
		"How many of these addresses there is room for. With more, addresses of the service CIDRs that no Service has are not refused.")
	mapEntries   = desc("shunt_map_entries", "Entries in an eBPF map.", "map")
	mapSize      = desc("shunt_map_max_entries", "Entries that an eBPF map has room for.", "map")
	flowsExpired = desc("shunt_flows_expired_total",
		"Flows of the packet path that ended, or were not used for their time, and were forgotten.")
	flowsEvicted = desc("shunt_flows_evicted_total",
		"Flows of the packet path that were forgotten before their time, the least recently used first, since map flows was nearly full.")
	inEffect = desc("shunt_in_effect",
		"1 where a hook acts as it should, by name: the programs of the socket path; ingress and egress for those of the packet path; "+
			"cgroup for their scope, that of this node's pods; pins for what must outlive the daemon.", "hook")
	reasonSeen = desc("shunt_reason_total",
		"How often an eBPF program ended, by the reason why.", "reason")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// described are the metrics above, and those of the watches.
var described = []*prometheus.Desc{
	mapEntries, mapSize, reasonSeen, inEffect, flowsExpired, flowsEvicted,
	lastTimestamp, lastQueued, endpointChanges, endpointChangesPending,
	serviceChanges, serviceChangesPending, noLocalEndpoints, servicesFailing, serviceProblems, watchUp, watchLastEvent,
	exceptions, exceptionsMax,
}

// counted returns the metrics that are updated by reports and not at a scrape.
func (m *collector) counted() []prometheus.Collector {
	return []prometheus.Collector{
		m.sync, m.syncFull, m.syncPartial, m.programming, m.healthz, m.livez,
		m.writes, m.destroyed, m.repairs, m.failures, m.deviceFailures, m.adopted, m.build,
	}
}

// Describe implements prometheus.Collector.
func (m *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range described {
		out <- d
	}
	for _, c := range m.counted() {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector. A source that cannot be read invalidates only its
// own metrics.
func (m *collector) Collect(out chan<- prometheus.Metric) {
	for _, c := range m.counted() {
		c.Collect(out)
	}
	m.collectStatus(out, m.checker.status())
	m.collectReasons(out)
	m.collectWatches(out)
	m.collectHooks(out)
	if flows := m.checker.flows; flows != nil {
		stats := flows.FlowStats()
		counter(out, flowsExpired, float64(stats.Expired))
		counter(out, flowsEvicted, float64(stats.Evicted))
	}
}

func (m *collector) collectStatus(out chan<- prometheus.Metric, st lb.Status) {
	gauge(out, lastTimestamp, unix(st.LastSync))
	gauge(out, lastQueued, unix(st.LastQueued))
	counter(out, endpointChanges, float64(st.EndpointChanges))
	gauge(out, endpointChangesPending, float64(st.EndpointChangesPending))
	counter(out, serviceChanges, float64(st.ServiceChanges))
	gauge(out, serviceChangesPending, float64(st.ServiceChangesPending))
	for _, family := range []lb.Family{lb.IPv4, lb.IPv6} {
		for policy, external := range map[string]bool{"internal": false, "external": true} {
			n := st.NoLocalEndpoints[lb.NoLocalKey{Family: family, External: external}]
			gauge(out, noLocalEndpoints, float64(n), family.String(), policy)
		}
	}
	gauge(out, servicesFailing, float64(st.Failing))
	gauge(out, exceptions, float64(st.Exceptions))
	gauge(out, exceptionsMax, float64(st.ExceptionRoom))
	for _, kind := range maps.ProblemKinds() {
		gauge(out, serviceProblems, float64(st.Problems.Services[kind]), kind.String())
	}
	for _, f := range m.checker.fill(st) {
		gauge(out, mapEntries, float64(f.Used), f.Map)
		gauge(out, mapSize, float64(f.Size), f.Map)
	}
}

func (m *collector) collectReasons(out chan<- prometheus.Metric) {
	if m.reasons == nil {
		return
	}
	reasons, err := m.reasons.Reasons()
	if err != nil {
		out <- prometheus.NewInvalidMetric(reasonSeen, err)
		return
	}
	for reason, n := range reasons {
		counter(out, reasonSeen, float64(n), reason)
	}
}

func (m *collector) collectHooks(out chan<- prometheus.Metric) {
	if m.checker.hooks == nil {
		return
	}
	for name, problem := range m.checker.hooks.Now() {
		v := 1.0
		if problem != "" {
			v = 0
		}
		gauge(out, inEffect, v, name)
	}
}

func gauge(out chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func counter(out chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

// unix returns a time as seconds since 1970, 0 for the zero time.
func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / float64(time.Second)
}
