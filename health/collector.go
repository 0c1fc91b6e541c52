// SPDX-License-Identifier: Apache-2.0

package health

import (
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"shunt/lb"
	"shunt/maps"
)

// collector contains every metric of shunt itself. Counters and histograms are updated when
// something is reported. States are read from their sources at each scrape.
//
// The names that begin with kubeproxy_ are kube-proxy's, so that its dashboards and alerts
// work. One reconcile programs both families, so the metrics of its durations and times have
// no ip_family label.
type collector struct {
	checker *checker
	reasons ReasonSource
	// start is when this process began. The programming latency of earlier changes is not
	// measured: it would include the time while no daemon ran.
	start time.Time

	sync, syncFull, syncPartial prometheus.Histogram
	programming                 prometheus.Histogram
	healthz, livez              *prometheus.CounterVec
	writes, destroyed, repairs  *prometheus.CounterVec
	failures, deviceFailures    prometheus.Counter
	adopted                     *prometheus.GaugeVec
	build                       prometheus.Gauge
}

// syncBuckets are kube-proxy's buckets (1 ms to 16.4 s, doubling) and three smaller
// ones, in seconds: a reconcile of one changed endpoint takes less than a millisecond.
var syncBuckets = prometheus.ExponentialBuckets(0.000125, 2, 18)

// programmingBuckets, in seconds, range from the time that shunt needs to program a change to
// the time that an overloaded control plane may need to deliver one.
var programmingBuckets = []float64{
	0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800,
}

func newCollector(c *checker, opts Options) *collector {
	m := &collector{
		checker: c,
		reasons: opts.Reasons,
		start:   opts.Now(),
		sync: histogram("kubeproxy_sync_proxy_rules_duration_seconds",
			"How long a reconcile of the eBPF maps took, in seconds.", syncBuckets),
		syncFull: histogram("kubeproxy_sync_full_proxy_rules_duration_seconds",
			"How long a reconcile took that looked at every service, in seconds.", syncBuckets),
		syncPartial: histogram("kubeproxy_sync_partial_proxy_rules_duration_seconds",
			"How long a reconcile took that looked at changed services only, in seconds.", syncBuckets),
		programming: histogram("kubeproxy_network_programming_duration_seconds",
			"Time from the change of a pod or Service, as its EndpointSlice dates it, until the eBPF maps held it, in seconds.",
			programmingBuckets),
		healthz: counters("kubeproxy_proxy_healthz_total", "Answers of /healthz by HTTP status code.", "code"),
		livez:   counters("kubeproxy_proxy_livez_total", "Answers of /livez by HTTP status code.", "code"),
		writes:  counters("shunt_map_writes_total", "Writes to the eBPF maps by kind of entry.", "kind"),
		destroyed: counters("shunt_sockets_destroyed_total",
			"Sockets of clients that were destroyed since their endpoint was removed.", "protocol"),
		repairs: counters("shunt_hook_repairs_total",
			"How often a hook, a pin or the hooks' cgroup was found wrong and was put right, by name.", "hook"),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "shunt_reconcile_failures_total",
			Help: "Reconciles that could not bring everything into the maps and left the rest for another attempt."}),
		deviceFailures: prometheus.NewCounter(prometheus.CounterOpts{Name: "shunt_device_failures_total",
			Help: "Attempts to attach programs to a network device that failed, and are made again."}),
		adopted: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "shunt_adopted_entries",
			Help: "Entries that were found in the pinned maps at start and kept."}, []string{"map"}),
		build: prometheus.NewGauge(prometheus.GaugeOpts{Name: "shunt_build_info",
			Help: "Always 1; its labels say which binary this is.",
			ConstLabels: prometheus.Labels{"version": opts.Build.Version, "revision": opts.Build.Revision,
				"goversion": runtime.Version()}}),
	}
	m.build.Set(1)
	for _, kind := range writeKinds(maps.Writes{}) {
		m.writes.WithLabelValues(kind.name) // a rate needs a 0 before the first write
	}
	for _, p := range []lb.Protocol{lb.TCP, lb.UDP} {
		m.destroyed.WithLabelValues(p.String())
	}
	return m
}

func histogram(name, help string, buckets []float64) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
}

func counters(name, help, label string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
}

// reconciled counts a report. It is called by the reconcile goroutine and does
// nothing that could block.
func (m *collector) reconciled(r lb.Report) {
	took := r.Ended.Sub(r.Started).Seconds()
	m.sync.Observe(took)
	if r.Full {
		m.syncFull.Observe(took)
	} else {
		m.syncPartial.Observe(took)
	}
	for _, changed := range r.Programmed {
		if !changed.Before(m.start) {
			// The clocks of two machines are compared, so the difference can be negative.
			m.programming.Observe(max(0, r.Ended.Sub(changed).Seconds()))
		}
	}
	for _, kind := range writeKinds(r.Writes) {
		m.writes.WithLabelValues(kind.name).Add(float64(kind.count))
	}
	if r.Err != nil || r.Failed > 0 {
		m.failures.Inc()
	}
}

func (m *collector) healthzAnswered(code int) {
	m.healthz.WithLabelValues(strconv.Itoa(code)).Inc()
}

func (m *collector) livezAnswered(code int) {
	m.livez.WithLabelValues(strconv.Itoa(code)).Inc()
}

func (m *collector) socketsDestroyed(p lb.Protocol, n int) {
	if n > 0 {
		m.destroyed.WithLabelValues(p.String()).Add(float64(n))
	}
}

func (m *collector) setAdopted(entries map[string]int) {
	m.adopted.Reset()
	for name, n := range entries {
		m.adopted.WithLabelValues(name).Set(float64(n))
	}
}

// writeKind is a field of maps.Writes, with its label in shunt_map_writes_total.
type writeKind struct {
	name  string
	count uint64
}

// writeKinds derives the labels from the fields of maps.Writes, so that a new field
// there is a new label here: NodeAddrs becomes node_addrs.
func writeKinds(w maps.Writes) []writeKind {
	v := reflect.ValueOf(w)
	kinds := make([]writeKind, 0, v.NumField())
	for i := range v.NumField() {
		kinds = append(kinds, writeKind{snake(v.Type().Field(i).Name), v.Field(i).Uint()})
	}
	return kinds
}

// snake converts a Go name without acronyms to the form of metric labels.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if r >= 'A' && r <= 'Z' && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToLower(b.String())
}
