// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"shunt/bpf"
	"shunt/e2e/rig"
	"shunt/lab"
	"shunt/lb"
	"shunt/maps"
)

// inProcess is the daemon's store, loop and programs in this process: files cannot change
// 500 times a second.
type inProcess struct {
	t     *testing.T
	store *lb.Store
	// done receives the time (lab.Monotonic) of the end of each reconcile.
	done chan int64
}

// Reconciled runs on the loop's goroutine.
func (p *inProcess) Reconciled(r lb.Report) {
	if r.Err != nil {
		p.t.Error(r.Err)
	}
	p.done <- lab.Monotonic()
}

// SetHealthChecks is not tested here.
func (p *inProcess) SetHealthChecks([]lb.HealthCheck) {}

func startInProcess(t *testing.T, node *lab.Node) *inProcess {
	t.Helper()
	root := filepath.Join(node.BPFFS(), "shunt")
	set, _, err := maps.Open(root, maps.Sizes{Services: 64, Slots: 1 << 16, Backends: 1 << 14, Affinity: 64, Sources: 16, Flows: 16})
	if err != nil {
		t.Fatal(err)
	}
	closing := func(c interface{ Close() error }) {
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closing(set)
	kernel, err := maps.NewKernel(set)
	if err != nil {
		t.Fatal(err)
	}
	closing(kernel)
	var programs *bpf.Programs
	err = node.Do(func() (err error) { // the daemon's network namespace is the node's
		programs, err = bpf.Load(set)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	closing(programs)
	p := &inProcess{t: t, store: lb.NewStore(time.Now), done: make(chan int64, 1)}
	loop := lb.NewLoop(lb.LoopOptions{Store: p.store, Tables: kernel, Now: time.Now, NodeName: node.Name(),
		Log: zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)), Observer: p,
		OnSynced: func(ctx context.Context) error {
			if err := programs.Attach(root, node.Cgroup()); err != nil {
				return err
			}
			return bpf.Verify(ctx, kernel, node.Cgroup())
		}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

// span is the time in which an endpoint was, or may have been, in the maps.
type span struct{ from, to int64 }

// TestReplacedEndpoints replaces the endpoints of a service 500 times a second while 20,000
// connections are made to it, and others over IPv6 and UDP: none is refused, and none
// reaches an endpoint that was removed before connect began or was added after it returned.
func TestReplacedEndpoints(t *testing.T) {
	l := lab.ForTest(t)
	n1, n2 := l.Node("n1"), l.Node("n2")
	pods := []*lab.Pod{n1.Pod("web-0"), n2.Pod("web-1"), n1.Pod("web-2"), n2.Pod("web-3")}
	for _, p := range pods {
		p.Serve("tcp", rig.ServerPort)
		p.Serve("udp", rig.ServerPort)
	}
	client := n1.Pod("client")
	p := startInProcess(t, n1)
	r := &replacer{p: p, pods: pods, random: rand.New(rand.NewPCG(1, 2)), spans: map[string][]span{}}
	name := lb.ServiceName{Namespace: "default", Name: "web"}
	p.store.SetService(&lb.Service{Name: name, ClusterIPs: rig.ClusterIPs(1), Ports: []lb.ServicePort{
		{Name: "t", Protocol: lb.TCP, Port: rig.ServicePort}, {Name: "u", Protocol: lb.UDP, Port: rig.ServicePort}}})
	r.set(name)
	p.store.SetSynced()
	<-p.done

	ctx, stop := context.WithCancel(t.Context())
	replaced := make(chan struct{})
	start := time.Now()
	go func() {
		defer close(replaced)
		for i := 1; ctx.Err() == nil; i++ {
			time.Sleep(time.Until(start.Add(time.Duration(i) * 2 * time.Millisecond))) // 500 per second
			r.replace(name)
		}
	}()
	few := rig.InShort(300, 3_000)
	running := []*lab.Hammering{
		client.StartHammer("tcp4", rig.VIP(1, 4), lab.HammerOptions{Count: rig.InShort(2_000, 20_000), Concurrency: 2, Records: true}),
		client.StartHammer("tcp6", rig.VIP(1, 6), lab.HammerOptions{Count: few, Records: true}),
		client.StartHammer("udp6", rig.VIP(1, 6), lab.HammerOptions{Count: few, Records: true}),
		client.StartHammer("udp4", rig.VIP(1, 4), lab.HammerOptions{Count: few, Records: true, Unconnected: true}),
	}
	var sums []lab.Summary
	for _, h := range running {
		s, err := h.Wait()
		if err != nil {
			t.Error(err)
		}
		sums = append(sums, s)
	}
	elapsed := time.Since(start)
	stop()
	<-replaced
	// The rate depends on the machine. The test needs many changes.
	t.Logf("%d changes in %v: %.0f a second", r.changes, elapsed, float64(r.changes)/elapsed.Seconds())
	if r.changes < 200 {
		t.Errorf("only %d changes", r.changes)
	}
	for i, network := range []string{"tcp4", "tcp6", "udp6", "udp4 sendto"} {
		r.check(t, network, sums[i])
	}
}

// replacer changes which pods are a service's endpoints, and records when each was one.
// Only one goroutine at a time may use it.
type replacer struct {
	p       *inProcess
	pods    []*lab.Pod
	random  *rand.Rand
	current uint // bits: the pods that are endpoints now
	spans   map[string][]span
	changes int
}

// replace sets another set of endpoints and waits until it is in the maps.
func (r *replacer) replace(name lb.ServiceName) {
	before := lab.Monotonic()
	last := r.current
	r.set(name)
	after := <-r.p.done
	r.changes++
	for i, p := range r.pods {
		was, is := last&(1<<i) != 0, r.current&(1<<i) != 0
		all := r.spans[p.Name()]
		switch {
		case is && !was:
			r.spans[p.Name()] = append(all, span{from: before, to: 1<<63 - 1})
		case was && !is:
			all[len(all)-1].to = after
		}
	}
}

// set picks another set, of at least one, and passes it to the store.
func (r *replacer) set(name lb.ServiceName) {
	before := r.current
	for r.current == before {
		r.current = 1 + r.random.UintN(1<<len(r.pods)-1)
	}
	if before == 0 { // the first set exists from the beginning
		for i, p := range r.pods {
			if r.current&(1<<i) != 0 {
				r.spans[p.Name()] = []span{{0, 1<<63 - 1}}
			}
		}
	}
	sl := &lb.EndpointSlice{Name: lb.SliceName{Namespace: "default", Name: "web-1"}, Service: name,
		Ports: []lb.EndpointPort{{Name: "t", Protocol: lb.TCP, Port: rig.ServerPort}, {Name: "u", Protocol: lb.UDP, Port: rig.ServerPort}}}
	for i, p := range r.pods {
		if r.current&(1<<i) == 0 {
			continue
		}
		for _, a := range p.Addrs() {
			sl.Endpoints = append(sl.Endpoints, lb.Endpoint{Addr: a, Ready: true, Serving: true, Node: p.Node().Name()})
		}
	}
	r.p.store.SetSlice(sl)
}

// check checks every connection: the server that answered was an endpoint at some time
// between the beginning and the end of connect.
func (r *replacer) check(t *testing.T, network string, s lab.Summary) {
	t.Helper()
	if s.Answered != s.Done || s.Done == 0 {
		t.Errorf("%s: %d of %d answered, errors %v (%s)", network, s.Answered, s.Done, s.Errors, s.FirstError)
	}
	if len(s.Servers) != len(r.pods) {
		t.Errorf("%s: answered by %v, want all %d", network, s.Servers, len(r.pods))
	}
	wrong := 0
	for _, c := range s.Records {
		spans := r.spans[c.Server]
		done := c.Connected
		if network == "udp4 sendto" {
			done = c.End // sendto makes the choice
		}
		// The last span that began before connect was done must be the right one.
		i, _ := slices.BinarySearchFunc(spans, done, func(s span, at int64) int {
			if s.from <= at {
				return -1
			}
			return 1
		})
		if c.Errno == 0 && (i == 0 || spans[i-1].to < c.Start) {
			wrong++
			t.Logf("%s: %s answered a connection of %d to %d, an endpoint in %v", network, c.Server, c.Start, done,
				spans[max(0, i-2):min(i+1, len(spans))])
		}
	}
	if wrong > 0 {
		t.Errorf("%s: %d of %d connections went to an endpoint that was none", network, wrong, s.Done)
	}
}
