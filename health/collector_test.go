// SPDX-License-Identifier: Apache-2.0

package health

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"shunt/lb"
	"shunt/maps"
)

// fixedReasons is a ReasonSource with fixed counts, or an error.
type fixedReasons struct {
	counts map[string]uint64
	err    error
}

func (f fixedReasons) Reasons() (map[string]uint64, error) { return f.counts, f.err }

// newTestServer returns a server that does not run, for tests of metrics and verdicts.
func newTestServer(t *testing.T, opts Options, st StatusSource) *Server {
	t.Helper()
	opts.Log, opts.Now = zap.NewNop(), atNoon
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if st != nil {
		s.SetStatus(st)
	}
	return s
}

// exposes compares the named metrics with their text form.
func exposes(t *testing.T, s *Server, want string, names ...string) {
	t.Helper()
	if err := testutil.CollectAndCompare(s.collector, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

func TestStatusMetrics(t *testing.T) {
	st := &fixedStatus{st: lb.Status{
		LastSync: time.Unix(1000, 500e6), LastQueued: time.Unix(2000, 0),
		ServiceChanges: 5, EndpointChanges: 7, ServiceChangesPending: 1, EndpointChangesPending: 2,
		NoLocalEndpoints: map[lb.NoLocalKey]int{{Family: lb.IPv6, External: true}: 3, {Family: lb.IPv4}: 4},
		Fill:             []maps.Fill{{Map: "slots", Used: 6, Size: 8}, {Map: "services", Used: 1, Size: 2}},
		Failing:          2,
		Exceptions:       9, ExceptionRoom: 4,
		Problems: lb.Problems{Services: map[lb.ProblemKind]int{maps.Conflict: 3, maps.NoRoom: 1}},
	}}
	exposes(t, newTestServer(t, Options{}, st), `
# HELP kubeproxy_sync_proxy_rules_endpoint_changes_pending Changes of EndpointSlices that are not in the maps yet.
# TYPE kubeproxy_sync_proxy_rules_endpoint_changes_pending gauge
kubeproxy_sync_proxy_rules_endpoint_changes_pending 2
# HELP kubeproxy_sync_proxy_rules_endpoint_changes_total Changes of EndpointSlices that were taken.
# TYPE kubeproxy_sync_proxy_rules_endpoint_changes_total counter
kubeproxy_sync_proxy_rules_endpoint_changes_total 7
# HELP kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds When the newest change was taken, as a Unix time in seconds; 0 before the first.
# TYPE kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds gauge
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 2000
# HELP kubeproxy_sync_proxy_rules_last_timestamp_seconds When the maps last held everything that was known, as a Unix time in seconds; 0 if they never did.
# TYPE kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge
kubeproxy_sync_proxy_rules_last_timestamp_seconds 1000.5
# HELP kubeproxy_sync_proxy_rules_no_local_endpoints_total Service ports with a Local traffic policy and no usable endpoint on this node, of those that have endpoints.
# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge
kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 0
kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 4
kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"} 3
kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="internal"} 0
# HELP kubeproxy_sync_proxy_rules_service_changes_pending Changes of Services that are not in the maps yet.
# TYPE kubeproxy_sync_proxy_rules_service_changes_pending gauge
kubeproxy_sync_proxy_rules_service_changes_pending 1
# HELP kubeproxy_sync_proxy_rules_service_changes_total Changes of Services that were taken.
# TYPE kubeproxy_sync_proxy_rules_service_changes_total counter
kubeproxy_sync_proxy_rules_service_changes_total 5
# HELP shunt_map_entries Entries in an eBPF map.
# TYPE shunt_map_entries gauge
shunt_map_entries{map="services"} 1
shunt_map_entries{map="slots"} 6
# HELP shunt_map_max_entries Entries that an eBPF map has room for.
# TYPE shunt_map_max_entries gauge
shunt_map_max_entries{map="services"} 2
shunt_map_max_entries{map="slots"} 8
# HELP shunt_service_cidr_exceptions Addresses of Services that are not in the maps: another proxy serves them, or they find no room. They are excepted from the service CIDRs.
# TYPE shunt_service_cidr_exceptions gauge
shunt_service_cidr_exceptions 9
# HELP shunt_service_cidr_exceptions_max How many of these addresses there is room for. With more, addresses of the service CIDRs that no Service has are not refused.
# TYPE shunt_service_cidr_exceptions_max gauge
shunt_service_cidr_exceptions_max 4
# HELP shunt_service_problems Services that are not served as they ask, by the kind of problem; one may have several.
# TYPE shunt_service_problems gauge
shunt_service_problems{kind="conflict"} 3
shunt_service_problems{kind="cut"} 0
shunt_service_problems{kind="failed"} 0
shunt_service_problems{kind="no_room"} 1
shunt_service_problems{kind="refused"} 0
# HELP shunt_services_failing Services that could not be brought into the maps, and are tried again.
# TYPE shunt_services_failing gauge
shunt_services_failing 2
`, "kubeproxy_sync_proxy_rules_endpoint_changes_pending", "kubeproxy_sync_proxy_rules_endpoint_changes_total",
		"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
		"kubeproxy_sync_proxy_rules_no_local_endpoints_total", "kubeproxy_sync_proxy_rules_service_changes_pending",
		"kubeproxy_sync_proxy_rules_service_changes_total", "shunt_map_entries", "shunt_map_max_entries", "shunt_service_cidr_exceptions",
		"shunt_service_cidr_exceptions_max", "shunt_service_problems", "shunt_services_failing")
}

func TestTimestampsBeforeAnything(t *testing.T) {
	exposes(t, newTestServer(t, Options{}, nil), `
# HELP kubeproxy_sync_proxy_rules_last_timestamp_seconds When the maps last held everything that was known, as a Unix time in seconds; 0 if they never did.
# TYPE kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge
kubeproxy_sync_proxy_rules_last_timestamp_seconds 0
`, "kubeproxy_sync_proxy_rules_last_timestamp_seconds")
}

func TestCountedMetrics(t *testing.T) {
	s := newTestServer(t, Options{
		Reasons: fixedReasons{counts: map[string]uint64{"translated": 9, "no_endpoint": 1}},
		Build:   BuildInfo{Version: "v1.2.3", Revision: "abc"},
	}, inOrder())
	s.Reconciled(lb.Report{Writes: maps.Writes{Frontends: 1, Slots: 2, NodeAddrs: 3, Sources: 5}})
	s.Reconciled(lb.Report{Writes: maps.Writes{Slots: 2, Backends: 4}, Failed: 2, Err: errDisk})
	s.SocketsDestroyed(lb.UDP, 3)
	s.SocketsDestroyed(lb.UDP, 2)
	s.DeviceFailed()
	s.SetAdopted(map[string]int{"services": 10, "gone": 1})
	s.SetAdopted(map[string]int{"services": 11})
	exposes(t, s, fmt.Sprintf(`
# HELP shunt_adopted_entries Entries that were found in the pinned maps at start and kept.
# TYPE shunt_adopted_entries gauge
shunt_adopted_entries{map="services"} 11
# HELP shunt_build_info Always 1; its labels say which binary this is.
# TYPE shunt_build_info gauge
shunt_build_info{goversion=%q,revision="abc",version="v1.2.3"} 1
# HELP shunt_device_failures_total Attempts to attach programs to a network device that failed, and are made again.
# TYPE shunt_device_failures_total counter
shunt_device_failures_total 1
# HELP shunt_map_writes_total Writes to the eBPF maps by kind of entry.
# TYPE shunt_map_writes_total counter
shunt_map_writes_total{kind="backends"} 4
shunt_map_writes_total{kind="frontends"} 1
shunt_map_writes_total{kind="names"} 0
shunt_map_writes_total{kind="node_addrs"} 3
shunt_map_writes_total{kind="service_cidrs"} 0
shunt_map_writes_total{kind="slots"} 4
shunt_map_writes_total{kind="sources"} 5
# HELP shunt_reason_total How often an eBPF program ended, by the reason why.
# TYPE shunt_reason_total counter
shunt_reason_total{reason="no_endpoint"} 1
shunt_reason_total{reason="translated"} 9
# HELP shunt_reconcile_failures_total Reconciles that could not bring everything into the maps and left the rest for another attempt.
# TYPE shunt_reconcile_failures_total counter
shunt_reconcile_failures_total 1
# HELP shunt_sockets_destroyed_total Sockets of clients that were destroyed since their endpoint was removed.
# TYPE shunt_sockets_destroyed_total counter
shunt_sockets_destroyed_total{protocol="TCP"} 0
shunt_sockets_destroyed_total{protocol="UDP"} 5
`, runtime.Version()), "shunt_adopted_entries", "shunt_build_info", "shunt_device_failures_total", "shunt_map_writes_total", "shunt_reason_total",
		"shunt_reconcile_failures_total", "shunt_sockets_destroyed_total")
}

// TestEveryWriteIsExposed: the sum of all labels is maps.Writes' own total, whatever fields
// it has.
func TestEveryWriteIsExposed(t *testing.T) {
	var w maps.Writes
	v := reflect.ValueOf(&w).Elem()
	for i := range v.NumField() {
		v.Field(i).SetUint(1 << i)
	}
	var sum uint64
	for _, kind := range writeKinds(w) {
		sum += kind.count
	}
	if sum != w.Total() {
		t.Errorf("labels add up to %d, Writes.Total is %d", sum, w.Total())
	}
}

// histogramOf returns the count and the sum of a histogram.
func histogramOf(t *testing.T, s *Server, name string) (count uint64, sum float64) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(s.collector)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			h := f.GetMetric()[0].GetHistogram()
			return h.GetSampleCount(), h.GetSampleSum()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0, 0
}

func TestDurations(t *testing.T) {
	s := newTestServer(t, Options{}, inOrder())
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	s.Reconciled(lb.Report{Started: at(0), Ended: at(500), Full: true})
	s.Reconciled(lb.Report{Started: at(1000), Ended: at(1002), Programmed: []time.Time{
		at(2),    // 1 s ago
		at(-1),   // before the process started: not counted
		at(1502), // by a clock that is ahead of this one: counted as 0 s
	}})
	s.Reconciled(lb.Report{Started: at(2000), Ended: at(2001)})
	for name, want := range map[string]struct {
		count uint64
		sum   float64
	}{
		"kubeproxy_sync_proxy_rules_duration_seconds":         {3, 0.503},
		"kubeproxy_sync_full_proxy_rules_duration_seconds":    {1, 0.5},
		"kubeproxy_sync_partial_proxy_rules_duration_seconds": {2, 0.003},
		"kubeproxy_network_programming_duration_seconds":      {2, 1},
	} {
		if count, sum := histogramOf(t, s, name); count != want.count || math.Abs(sum-want.sum) > 1e-9 {
			t.Errorf("%s: %d observations of %v s, want %d of %v s", name, count, sum, want.count, want.sum)
		}
	}
}

// TestBucketsHoldKubeProxys: queries by kube-proxy's values of le, such as le="0.001", find
// a bucket.
func TestBucketsHoldKubeProxys(t *testing.T) {
	for i, bound := 0, 0.001; i < 15; i, bound = i+1, bound*2 {
		found := false
		for _, b := range syncBuckets {
			found = found || b == bound
		}
		if !found {
			t.Errorf("no bucket of %v s in %v", bound, syncBuckets)
		}
	}
}

func TestProbesAreCounted(t *testing.T) {
	st := inOrder()
	s, _ := start(t, Options{HealthzAddress: anyPort, MetricsAddress: anyPort}, st)
	get(t, s.HealthzAddr(), "/healthz")
	get(t, s.HealthzAddr(), "/healthz")
	get(t, s.HealthzAddr(), "/livez")
	st.set(func(st *lb.Status) { st.Node.Deleting = true })
	get(t, s.HealthzAddr(), "/healthz")
	get(t, s.MetricsAddr(), "/healthz") // another server: not counted
	exposes(t, s, `
# HELP kubeproxy_proxy_healthz_total Answers of /healthz by HTTP status code.
# TYPE kubeproxy_proxy_healthz_total counter
kubeproxy_proxy_healthz_total{code="200"} 2
kubeproxy_proxy_healthz_total{code="503"} 1
# HELP kubeproxy_proxy_livez_total Answers of /livez by HTTP status code.
# TYPE kubeproxy_proxy_livez_total counter
kubeproxy_proxy_livez_total{code="200"} 1
`, "kubeproxy_proxy_healthz_total", "kubeproxy_proxy_livez_total")
}

// TestMetricsServer requests every path of the metrics server.
func TestMetricsServer(t *testing.T) {
	opts := Options{MetricsAddress: anyPort, Config: map[string]any{"nodeName": "n1"},
		Reasons: fixedReasons{err: errors.New("map is gone")}}
	s, logs := start(t, opts, inOrder())
	for path, want := range map[string]reply{
		"/proxyMode":             {code: http.StatusOK, body: "shunt"},
		"/healthz":               {code: http.StatusOK, body: "ok"},
		"/configz":               {code: http.StatusOK, body: `{"nodeName":"n1"}`},
		"/debug/pprof/goroutine": {code: http.StatusNotFound},
		"/other":                 {code: http.StatusNotFound},
		// A source that cannot be read removes only its own metric.
		"/metrics": {code: http.StatusOK, body: "\nkubeproxy_sync_proxy_rules_service_changes_total 0\n"},
	} {
		if r := get(t, s.MetricsAddr(), path); r.code != want.code || !strings.Contains(r.body, want.body) {
			t.Errorf("%s: %d %s, want %d with %s", path, r.code, r.body, want.code, want.body)
		}
	}
	if logs.FilterMessage("metrics are incomplete").Len() != 1 {
		t.Error("the source that cannot be read is not in the log")
	}
	body := get(t, s.MetricsAddr(), "/metrics").body
	for _, words := range []string{"go_goroutines ", "process_open_fds ", "shunt_build_info{"} {
		if !strings.Contains(body, "\n"+words) {
			t.Errorf("/metrics has no %s", words)
		}
	}
	if strings.Contains(body, "shunt_reason_total") {
		t.Error("/metrics has reasons that could not be read")
	}
}

func TestProfiling(t *testing.T) {
	s, _ := start(t, Options{MetricsAddress: anyPort, Profiling: true}, inOrder())
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/goroutine?debug=1", "/debug/pprof/cmdline"} {
		if r := get(t, s.MetricsAddr(), path); r.code != http.StatusOK {
			t.Errorf("%s: %d %s", path, r.code, r.body)
		}
	}
}

// TestPedantic: every collected metric is described, and none is collected twice.
func TestPedantic(t *testing.T) {
	s := newTestServer(t, Options{Reasons: fixedReasons{counts: map[string]uint64{"a": 1}}}, inOrder())
	s.SetAdopted(map[string]int{"services": 1})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(s.collector)
	if _, err := registry.Gather(); err != nil {
		t.Error(err)
	}
}

// TestWatchMetrics: the metrics of watches and of requests to the API server.
func TestWatchMetrics(t *testing.T) {
	opts := Options{Requests: NewRequests(), Watches: func() []Watch {
		return []Watch{{Resource: "services", Up: true, LastEvent: noon}, {Resource: "nodes", FailingSince: noon, Error: "x"}}
	}}
	exposes(t, newTestServer(t, opts, inOrder()), `
# HELP shunt_watch_last_event_timestamp_seconds When the API server last sent anything for a watch, bookmarks included, as a Unix time in seconds; 0 if it never did.
# TYPE shunt_watch_last_event_timestamp_seconds gauge
shunt_watch_last_event_timestamp_seconds{resource="nodes"} 0
shunt_watch_last_event_timestamp_seconds{resource="services"} 1.7723664e+09
# HELP shunt_watch_up Whether a watch of the API server is open: 1, or 0 where requests fail or none was made yet.
# TYPE shunt_watch_up gauge
shunt_watch_up{resource="nodes"} 0
shunt_watch_up{resource="services"} 1
`, "shunt_watch_up", "shunt_watch_last_event_timestamp_seconds")
	opts.MetricsAddress = anyPort
	s, _ := start(t, opts, inOrder())
	opts.Requests.Ended("200", "GET", "h")
	opts.Requests.Retried("503", "GET", "h")
	opts.Requests.Took("GET", "h", time.Second)
	opts.Requests.Limited("GET", "h", time.Second)
	opts.Requests.Sent("POST", "h", 100)
	opts.Requests.Received("GET", "h", 100)
	body := get(t, s.MetricsAddr(), "/metrics").body
	for _, line := range []string{
		`rest_client_requests_total{code="200",host="h",method="GET"} 1`,
		`rest_client_request_retries_total{code="503",host="h",verb="GET"} 1`,
		`rest_client_request_duration_seconds_sum{host="h",verb="GET"} 1`,
		`rest_client_rate_limiter_duration_seconds_sum{host="h",verb="GET"} 1`,
		`rest_client_request_size_bytes_sum{host="h",verb="POST"} 100`,
		`rest_client_response_size_bytes_sum{host="h",verb="GET"} 100`,
	} {
		if !strings.Contains(body, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}
