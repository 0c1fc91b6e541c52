// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// checkNodePort is a port that tests request by number. The API server does not assign node
// ports of this range by itself as long as others are free.
const checkNodePort = 30050

// localService makes a service one of type LoadBalancer with policy Local.
func localService(port int32) func(*v1.Service) {
	return func(s *v1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy = v1.ServiceTypeLoadBalancer, v1.ServiceExternalTrafficPolicyLocal
		s.Spec.HealthCheckNodePort = port
	}
}

// healthAnswer is the answer to a load balancer's health check.
type healthAnswer struct {
	code   int
	header http.Header
	body   struct {
		Service             struct{ Namespace, Name string }
		LocalEndpoints      int
		ServiceProxyHealthy bool
	}
}

// askHealth makes a request to a healthCheckNodePort of n1 from another machine.
func (w *world) askHealth(method, path string, to netip.AddrPort) (a healthAnswer, err error) {
	transport := &http.Transport{DialContext: w.n2.DialContext}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(w.t.Context(), method, "http://"+to.String()+path, nil)
	if err != nil {
		return a, err
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(request)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(text, &a.body)
	}
	a.code, a.header = resp.StatusCode, resp.Header
	return a, err
}

// expectHealth waits for the answer for so many local endpoints, over IPv4.
func (w *world) expectHealth(service string, port uint16, endpoints int) {
	w.t.Helper()
	w.expectHealthAt(service, port, endpoints, w.n1.Addr4())
}

func (w *world) expectHealthAt(service string, port uint16, endpoints int, nodes ...netip.Addr) {
	w.t.Helper()
	code := http.StatusServiceUnavailable
	if endpoints > 0 {
		code = http.StatusOK
	}
	for _, node := range nodes {
		eventually(w.t, fmt.Sprintf("the health check of %s says %d endpoints", service, endpoints), func() error {
			a, err := w.askHealth(http.MethodPost, "/any/path?at=all", netip.AddrPortFrom(node, port))
			want := healthAnswer{code: code}
			want.body.Service.Namespace, want.body.Service.Name = w.namespace, service
			want.body.LocalEndpoints, want.body.ServiceProxyHealthy = endpoints, true
			if err == nil && (a.code != want.code || a.body != want.body ||
				a.header.Get("Content-Type") != "application/json" || a.header.Get("X-Content-Type-Options") != "nosniff" ||
				a.header.Get("X-Load-Balancing-Endpoint-Weight") != fmt.Sprint(endpoints)) {
				err = fmt.Errorf("it says %+v, want %+v", a, want)
			}
			return err
		})
	}
}

// TestHealthCheckNodePort follows the local endpoints of a service, and a port that is in
// use, becomes free, and changes.
func TestHealthCheckNodePort(t *testing.T) {
	w := setUp(t).in(t, "checks")
	local, far := w.pods[0], w.pods[5]
	w.create("web", []v1.ServicePort{tcp("", 80)}, localService(checkNodePort))
	w.createSlice("web", "web-1", onePort, v4(local, w.pods[1], far))
	w.createSlice("web", "web-2", onePort, v4(local)) // a second time: it still counts as one
	w.expectHealth("web", checkNodePort, 2)
	set := func(change func(*discoveryv1.EndpointSlice)) { w.updateSlice("web-1", change) }
	w.removeSlice("web-2")
	set(func(s *discoveryv1.EndpointSlice) { s.Endpoints = v4(local, far) })
	w.expectHealth("web", checkNodePort, 1)
	set(func(s *discoveryv1.EndpointSlice) { // still used, but not for new connections
		s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}
	})
	w.expectHealth("web", checkNodePort, 0)
	set(func(s *discoveryv1.EndpointSlice) { s.Endpoints = v4(local) })
	w.expectHealth("web", checkNodePort, 1)
	set(func(s *discoveryv1.EndpointSlice) { s.Endpoints = v4(far) })
	w.expectHealth("web", checkNodePort, 0)

	w.update("web", func(s *v1.Service) { s.Spec.IPFamilyPolicy = ptr(v1.IPFamilyPolicyPreferDualStack) })
	set(func(s *discoveryv1.EndpointSlice) { s.Endpoints = v4(local) })
	w.expectHealth("web", checkNodePort, 1)
	w.expectHealthAt("web", checkNodePort, 0, w.n1.Addr6()) // no endpoint has IPv6
	w.createSlice("web", "web-6", []discoveryv1.EndpointPort{target("other", v1.ProtocolTCP, 8000)}, v6(local))
	w.createSlice("web", "web-7", onePort, v6(far))
	w.expectHealthAt("web", checkNodePort, 0, w.n1.Addr6()) // none here for a port of web
	w.updateSlice("web-6", func(s *discoveryv1.EndpointSlice) { s.Ports = onePort })
	w.expectHealthAt("web", checkNodePort, 1, w.n1.Addr4(), w.n1.Addr6()) // one pod is one endpoint
	set(func(s *discoveryv1.EndpointSlice) { s.Endpoints = v4(far) })
	w.expectHealth("web", checkNodePort, 0)

	const taken = checkNodePort + 1
	squatter := w.host.Serve("tcp", taken)
	w.create("late", []v1.ServicePort{tcp("", 80)}, localService(taken))
	w.createSlice("late", "late-1", onePort, v4(local))
	note := w.event(v1.EventTypeWarning, "FailedToStartServiceHealthcheck", "Service", "late")
	if !strings.Contains(note, fmt.Sprint(taken)) || !strings.Contains(note, "n1") || !strings.Contains(note, "address already in use") {
		t.Errorf("the event says %q", note)
	}
	w.expectHealth("web", checkNodePort, 0) // the others are still served
	w.reach(w.client, "tcp", addr(w.get("late").Spec.ClusterIP, 80), "p0")
	check(t, squatter.Stop())
	w.expectHealth("late", taken, 1)
	if ports, err := w.daemon.listeners(); err != nil || !slices.Equal(ports, []string{fmt.Sprint("tcp ", checkNodePort), fmt.Sprint("tcp ", taken)}) {
		t.Errorf("the daemon listens on %q, %v", ports, err)
	}
	w.expectFresh(t)

	w.update("web", func(s *v1.Service) {
		s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyCluster
		s.Spec.HealthCheckNodePort = 0
	})
	w.remove("late")
	for _, port := range []uint16{checkNodePort, taken} {
		eventually(t, fmt.Sprintf("port %d is free again", port), func() error {
			conn, err := w.n2.DialContext(context.Background(), "tcp", netip.AddrPortFrom(w.n1.Addr4(), port).String())
			if err == nil {
				return errors.Join(errors.New("somebody listens"), conn.Close())
			}
			return nil
		})
	}
	w.expectFresh(t)
}

// TestStartingEvent: the Node has an event that the proxy started, as kubectl describe node
// shows it.
func TestStartingEvent(t *testing.T) {
	w := setUp(t).in(t, "starting")
	if note := w.event(v1.EventTypeNormal, "Starting", "Node", "n1"); !strings.Contains(note, "shunt") {
		t.Errorf("the event says %q", note)
	}
}

// TestMetrics checks the metrics of dashboards, while objects change.
func TestMetrics(t *testing.T) {
	w := setUp(t).in(t, "metrics")
	before := w.daemon.metrics(t)
	ip := w.create("web", []v1.ServicePort{tcp("", 80)}, func(s *v1.Service) {
		s.Spec.InternalTrafficPolicy = ptr(v1.ServiceInternalTrafficPolicyLocal)
	}).Spec.ClusterIP
	const age = 30 * time.Second
	w.createSlice("web", "web-1", onePort, v4(w.pods[5]), func(s *discoveryv1.EndpointSlice) {
		s.Annotations = map[string]string{v1.EndpointsLastChangeTriggerTime: time.Now().UTC().Format(time.RFC3339Nano)}
	})
	w.expect(t, w.namespace, fmt.Sprintf("web ClusterIP %s:80/TCP Local", ip))
	code, _, err := w.daemon.get(w.daemon.o.healthz, "/healthz")
	if err != nil || code != http.StatusOK {
		t.Fatalf("healthz: %d, %v", code, err)
	}
	grown := map[string][2]float64{ // the least and the largest growth
		"kubeproxy_network_programming_duration_seconds_count":                                            {1, 1},
		"kubeproxy_network_programming_duration_seconds_sum":                                              {0.00001, age.Seconds()},
		"kubeproxy_sync_proxy_rules_duration_seconds_count":                                               {2, 4},
		"kubeproxy_sync_partial_proxy_rules_duration_seconds_count":                                       {2, 4},
		"kubeproxy_sync_full_proxy_rules_duration_seconds_count":                                          {0, 0},
		"kubeproxy_sync_proxy_rules_service_changes_total":                                                {1, 1},
		"kubeproxy_sync_proxy_rules_endpoint_changes_total":                                               {1, 1},
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"}`: {1, 1},
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"}`: {0, 0},
		`kubeproxy_proxy_healthz_total{code="200"}`:                                                       {1, 1},
		`shunt_map_writes_total{kind="backends"}`:                                                         {1, 1},
		`shunt_map_entries{map="services"}`:                                                               {1, 1},
		`shunt_reconcile_failures_total`:                                                                  {0, 0},
	}
	var after map[string]float64
	eventually(t, "the metrics move", func() error {
		after = w.daemon.metrics(t)
		var errs []error
		for name, by := range grown {
			_, there := after[name]
			if d := after[name] - before[name]; !there || d < by[0] || d > by[1] {
				errs = append(errs, fmt.Errorf("%s grew by %v, want %v", name, d, by))
			}
		}
		return errors.Join(errs...)
	})
	now := float64(time.Now().Unix())
	for _, name := range []string{"kubeproxy_sync_proxy_rules_last_timestamp_seconds", "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"} {
		if v := after[name]; v < before[name] || v < now-60 || v > now+2 {
			t.Errorf("%s is %f, at %f", name, v, now)
		}
	}
	for _, name := range []string{"kubeproxy_sync_proxy_rules_service_changes_pending", "kubeproxy_sync_proxy_rules_endpoint_changes_pending"} {
		if v, there := after[name]; !there || v != 0 {
			t.Errorf("%s is %v", name, v)
		}
	}
	w.build(after)
}

// build checks the metric that identifies this proxy.
func (w *world) build(metrics map[string]float64) {
	w.t.Helper()
	found := false
	for name, v := range metrics {
		found = found || strings.HasPrefix(name, "shunt_build_info{") && v == 1
	}
	if !found {
		w.t.Error("there is no shunt_build_info")
	}
	for path, want := range map[string]string{"/proxyMode": "shunt", "/configz": `"nodeName":"n1"`} {
		code, body, err := w.daemon.get(w.daemon.o.metrics, path)
		if err != nil || code != http.StatusOK || !strings.Contains(body, want) {
			w.t.Errorf("%s: %d %s (%v), want %s", path, code, body, err, want)
		}
	}
}
