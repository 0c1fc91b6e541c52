// SPDX-License-Identifier: Apache-2.0

// Package bench_test measures parts of shunt: a hook, the packet programs, a first sync, a
// change. It prints figures and asserts no time. `shunt bench` is package bench.
package bench_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"shunt/bpf"
	"shunt/lab"
	"shunt/lb"
	"shunt/maps"
)

func TestMain(m *testing.M) {
	bpf.MaybeProbe()
	lab.MaybeAgent()
	os.Exit(m.Run())
}

// proxy runs the parts of the daemon without a watcher: services go straight into the
// store. Its hooks are attached to one node's cgroup.
type proxy struct {
	root, cgroup string
	set          *maps.Set
	kernel       *maps.Kernel
	programs     *bpf.Programs
	store        *lb.Store
	loop         *lb.Loop
	reports      chan lb.Report
}

// startProxy fills the maps of a node. It does not attach the hooks.
func startProxy(b *testing.B, node *lab.Node, sizes maps.Sizes, fill func(lb.Sink)) *proxy {
	b.Helper()
	root := filepath.Join(node.BPFFS(), "shunt")
	check(b, bpf.RequireBPFFS(root, false))
	set, _, err := maps.Open(root, sizes)
	check(b, err)
	kernel, err := maps.NewKernel(set)
	check(b, err)
	programs, err := bpf.Load(set)
	check(b, err)
	p := &proxy{root: root, cgroup: node.Cgroup(), set: set, kernel: kernel, programs: programs,
		store: lb.NewStore(time.Now), reports: make(chan lb.Report, 1024)}
	p.loop = lb.NewLoop(lb.LoopOptions{Store: p.store, Tables: kernel, Log: zap.NewNop(), Now: time.Now,
		NodeName: node.Name(), Observer: p})
	_, err = p.loop.Adopt()
	check(b, err)
	fill(p.store)
	p.store.SetSynced()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.loop.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		check(b, <-done)
		check(b, bpf.Detach(root))
		check(b, programs.Close())
		check(b, kernel.Close())
		check(b, set.Close())
	})
	report := p.report(b)
	check(b, report.Err)
	return p
}

// Reconciled passes reports to the benchmark.
func (p *proxy) Reconciled(r lb.Report) {
	select {
	case p.reports <- r:
	default: // the benchmark does not wait for this one
	}
}

// SetHealthChecks is not measured.
func (p *proxy) SetHealthChecks([]lb.HealthCheck) {}

func (p *proxy) report(b *testing.B) lb.Report {
	b.Helper()
	select {
	case r := <-p.reports:
		return r
	case <-time.After(time.Minute):
		b.Fatal("no reconcile within a minute")
	}
	return lb.Report{}
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// fillServices sets n services of `endpoints` each that get no connections. The measured
// service has its own backends.
func fillServices(s lb.Sink, n, endpoints int) {
	for i := range n {
		s.SetService(service(i))
		s.SetSlice(slice(i, endpoints, 0))
	}
}

func serviceName(i int) lb.ServiceName {
	return lb.ServiceName{Namespace: "bench", Name: fmt.Sprintf("svc-%d", i)}
}

func service(i int) *lb.Service {
	return &lb.Service{
		Name:       serviceName(i),
		ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})},
		Ports:      []lb.ServicePort{{Name: "http", Protocol: lb.TCP, Port: 80}},
	}
}

// slice returns a slice of a version: the address of one endpoint changes with the version.
func slice(i, endpoints, version int) *lb.EndpointSlice {
	sl := &lb.EndpointSlice{
		Name:    lb.SliceName{Namespace: "bench", Name: fmt.Sprintf("svc-%d-0", i)},
		Service: serviceName(i),
		Ports:   []lb.EndpointPort{{Name: "http", Protocol: lb.TCP, Port: 8080}},
	}
	for e := range endpoints {
		v := 0
		if e == 0 {
			v = version
		}
		n := i*endpoints + e
		sl.Endpoints = append(sl.Endpoints, lb.Endpoint{
			Addr:  netip.AddrFrom4([4]byte{100 + byte(v%100), byte(n >> 16), byte(n >> 8), byte(n)}),
			Ready: true, Serving: true, Node: "other",
		})
	}
	return sl
}

// median returns the median, and sorts the samples in place.
func median(samples []float64) float64 {
	slices.Sort(samples)
	return samples[len(samples)/2]
}
