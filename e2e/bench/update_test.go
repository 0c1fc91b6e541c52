// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shunt/e2e/kube"
	"shunt/lab"
	"shunt/lb"
	"shunt/maps"
	"shunt/watcher"
)

// updates is how many changes a round of BenchmarkEndpointUpdate makes.
const updates = 300

// BenchmarkEndpointUpdate measures how long one changed endpoint in the API server takes to
// reach the eBPF maps, with few and with many services: event- from the arrival of the
// watch event's last byte in this process, api- from the API server's answer to the change,
// which it may send after it has notified watchers. The writes are those of one change, by
// kind of map.
func BenchmarkEndpointUpdate(b *testing.B) {
	cluster := kube.ForTest(b)
	there, version := 0, 0
	for _, services := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			if there < services {
				fillCluster(b, cluster.Client(), there, services, perService)
				there = services
			}
			benchmarkUpdate(b, cluster, services, &version)
		})
	}
}

// perService is how many endpoints a service has.
const perService = 10

func benchmarkUpdate(b *testing.B, cluster *kube.Cluster, services int, version *int) {
	node := lab.ForTest(b).Node("n1")
	watch := &watching{arrived: make(chan time.Time, 1)}
	p := startProxy(b, node, maps.DefaultSizes(), func(s lb.Sink) { watch.start(b, cluster, s) })
	var event, api, call []float64
	var writes maps.Writes
	for range b.N {
		for range updates {
			*version++ // an address that was never used before
			called := time.Now()
			updateSlice(b, cluster.Client(), *version%services, perService, *version)
			answered := time.Now()
			arrived := <-watch.arrived
			r := p.reportOfChange(b, arrived)
			event = append(event, ms(r.Ended.Sub(arrived)))
			api = append(api, ms(r.Ended.Sub(answered)))
			call = append(call, ms(r.Ended.Sub(called)))
			writes.Frontends += r.Writes.Frontends
			writes.Slots += r.Writes.Slots
			writes.Backends += r.Writes.Backends
			writes.Names += r.Writes.Names
			writes.NodeAddrs += r.Writes.NodeAddrs
		}
	}
	n := float64(len(event))
	b.ReportMetric(0, "ns/op") // ns/op of a round means nothing
	b.ReportMetric(median(event), "event-p50-ms")
	b.ReportMetric(percentile(event, 99), "event-p99-ms")
	b.ReportMetric(median(api), "api-p50-ms")
	b.ReportMetric(percentile(api, 99), "api-p99-ms")
	b.ReportMetric(median(call), "call-p50-ms")
	b.ReportMetric(float64(writes.Frontends)/n, "frontend-writes")
	b.ReportMetric(float64(writes.Slots)/n, "slot-writes")
	b.ReportMetric(float64(writes.Backends)/n, "backend-writes")
	b.ReportMetric(float64(writes.Names)/n, "name-writes")
}

// reportOfChange returns the report of the reconcile that wrote the endpoint that arrived
// then. It skips reports about objects that arrived earlier.
func (p *proxy) reportOfChange(b *testing.B, arrived time.Time) lb.Report {
	b.Helper()
	for {
		r := p.report(b)
		check(b, r.Err)
		if r.Ended.After(arrived) && r.Writes.Backends > 0 {
			return r
		}
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// percentile returns a sample, not interpolated, and sorts the samples in place.
func percentile(samples []float64, p int) float64 {
	slices.Sort(samples)
	return samples[min(len(samples)-1, len(samples)*p/100)]
}

// watching runs the daemon's watcher in this process, with a clock on its connection.
type watching struct {
	lb.Sink
	lastRead atomic.Int64 // Unix time in nanoseconds
	live     atomic.Bool
	arrived  chan time.Time
	synced   chan struct{}
}

// start fills the sink from the API server and keeps it up to date.
func (w *watching) start(b *testing.B, cluster *kube.Cluster, sink lb.Sink) {
	b.Helper()
	kubeconfig := filepath.Join(b.TempDir(), "kubeconfig")
	check(b, cluster.Kubeconfig(kubeconfig))
	_, config, err := watcher.NewClient(watcher.ClientOptions{Kubeconfig: kubeconfig})
	check(b, err)
	dial := config.Dial
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return &clockedConn{conn, &w.lastRead}, err
	}
	client, err := kubernetes.NewForConfig(config)
	check(b, err)
	w.Sink, w.synced = sink, make(chan struct{})
	api, err := watcher.NewAPI(watcher.APIOptions{Client: client, NodeName: "n1", Sink: w, Log: zap.NewNop()})
	check(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		check(b, <-done)
	})
	select {
	case <-w.synced:
		w.live.Store(true)
	case <-time.After(2 * time.Minute):
		b.Fatal("the watcher has not synced within two minutes")
	}
}

// SetSynced does not call the sink's: startProxy does.
func (w *watching) SetSynced() { close(w.synced) }

// SetSlice sends the time at which the slice's bytes arrived.
func (w *watching) SetSlice(s *lb.EndpointSlice) {
	if w.live.Load() {
		w.arrived <- time.Unix(0, w.lastRead.Load())
	}
	w.Sink.SetSlice(s)
}

// clockedConn records when bytes were last read.
type clockedConn struct {
	net.Conn
	last *atomic.Int64
}

func (c *clockedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.last.Store(time.Now().UnixNano())
	return n, err
}

// fillCluster creates the services from number `from` up to `to`, with so many endpoints
// each, in a slice as the controller writes it.
func fillCluster(b *testing.B, client kubernetes.Interface, from, to, endpoints int) {
	b.Helper()
	ctx := b.Context()
	if from == 0 {
		_, err := client.CoreV1().Namespaces().Create(ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bench"}}, metav1.CreateOptions{})
		check(b, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(32)
	for i := from; i < to; i++ {
		group.Go(func() error {
			_, err := client.CoreV1().Services("bench").Create(ctx, apiService(i), metav1.CreateOptions{})
			if err == nil {
				_, err = client.DiscoveryV1().EndpointSlices("bench").Create(ctx, apiSlice(i, endpoints, 0), metav1.CreateOptions{})
			}
			return err
		})
	}
	check(b, group.Wait())
}

// updateSlice changes the first endpoint of a service.
func updateSlice(b *testing.B, client kubernetes.Interface, i, endpoints, version int) {
	b.Helper()
	_, err := client.DiscoveryV1().EndpointSlices("bench").Update(b.Context(), apiSlice(i, endpoints, version), metav1.UpdateOptions{})
	check(b, err)
}

func apiService(i int) *v1.Service {
	return &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("svc-%d", i), Labels: map[string]string{"app": fmt.Sprintf("svc-%d", i)}},
		Spec: v1.ServiceSpec{
			Selector: map[string]string{"app": fmt.Sprintf("svc-%d", i)},
			Ports:    []v1.ServicePort{{Name: "http", Protocol: v1.ProtocolTCP, Port: 80}},
		},
	}
}

// apiSlice returns a slice of a version, which is in the address of its first endpoint.
func apiSlice(i, endpoints, version int) *discoveryv1.EndpointSlice {
	service := fmt.Sprintf("svc-%d", i)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: service + "-x7k2p", Labels: map[string]string{
			discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Protocol: ptr(v1.ProtocolTCP), Port: ptr(int32(8080))}},
	}
	for e := range endpoints {
		n := i*endpoints + e
		addr := fmt.Sprintf("10.%d.%d.%d", n>>16, n>>8&255, n&255)
		if e == 0 && version > 0 {
			addr = changedEndpoint(version)
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{addr},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)},
			NodeName:   ptr(fmt.Sprintf("worker-%d.example.internal", n%500)),
			Zone:       ptr(fmt.Sprintf("region-1%c", 'a'+n%3)),
			TargetRef: &v1.ObjectReference{Kind: "Pod", Namespace: "bench", Name: fmt.Sprintf("%s-7d9f8c6b5-%05d", service, e),
				UID: "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"},
		})
	}
	return s
}

// changedEndpoint returns the address of the first endpoint in a version.
func changedEndpoint(version int) string {
	return fmt.Sprintf("11.%d.%d.%d", version>>16&255, version>>8&255, version&255)
}

func ptr[T any](v T) *T { return &v }
