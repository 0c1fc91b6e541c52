// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"shunt/bpf"
	"shunt/lab"
	"shunt/lb"
	"shunt/maps"
)

// proxyEnv is the environment variable that makes a process shunt's contender.
const proxyEnv = "SHUNT_BENCH_PROXY"

// proxyTask is a task for the process: a line of JSON. The answer is another line.
type proxyTask struct {
	// Op is prepare (create the objects), load (put the objects into effect), update (move
	// the endpoint of the moving service) or stop (remove everything).
	Op           string
	Workload     workload
	Root, Cgroup string
	Node         string
	Sizes        maps.Sizes
}

type proxyAnswer struct{ Err string }

// MaybeProxy turns this process into shunt's contender if a benchmark started it as one,
// and then never returns. A program that runs benchmarks calls it first in main, as
// lab.MaybeAgent. The process runs the parts of the daemon, with objects from memory
// instead of a watcher.
func MaybeProxy() {
	if os.Getenv(proxyEnv) == "" {
		return
	}
	debug.SetGCPercent(50) // as `shunt run`
	p := &inside{reports: make(chan lb.Report, 1)}
	err := p.serve(os.Stdin, os.Stdout)
	if err = errors.Join(err, p.stop()); err != nil {
		fmt.Fprintf(os.Stderr, "shunt of a benchmark: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// inside is the daemon without a watcher.
type inside struct {
	task     proxyTask
	store    *lb.Store
	set      *maps.Set
	kernel   *maps.Kernel
	programs *bpf.Programs
	packets  *bpf.PacketPath
	reports  chan lb.Report
	cancel   context.CancelFunc
	done     chan error // of the loop
	parts    errgroup.Group
	held     *recorder
}

// recorder holds objects until load.
type recorder struct {
	services []*lb.Service
	slices   []*lb.EndpointSlice
}

func (r *recorder) SetService(s *lb.Service)     { r.services = append(r.services, s) }
func (r *recorder) SetSlice(s *lb.EndpointSlice) { r.slices = append(r.slices, s) }

func (p *inside) serve(in io.Reader, out io.Writer) error {
	lines, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var t proxyTask
		if err := lines.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var a proxyAnswer
		if err := p.do(t); err != nil {
			a.Err = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

func (p *inside) do(t proxyTask) error {
	switch t.Op {
	case "prepare":
		p.task, p.held = t, &recorder{}
		t.Workload.fill(p.held)
		return nil
	case "load":
		return p.load()
	case "update":
		select { // drop a report of an earlier reconcile
		case <-p.reports:
		default:
		}
		_, slice := t.Workload.objects(t.Workload.moving())
		p.store.SetSlice(slice)
		return p.reconciled()
	case "stop":
		return p.stop()
	}
	return fmt.Errorf("no such task: %q", t.Op)
}

// load puts the workload into effect in the daemon's order: maps, programs, the first
// reconcile, then the hooks.
func (p *inside) load() error {
	if err := p.open(); err != nil {
		return err
	}
	p.store = lb.NewStore(time.Now)
	loop := lb.NewLoop(lb.LoopOptions{Store: p.store, Tables: p.kernel, Log: zap.NewNop(), Now: time.Now,
		NodeName: p.task.Node, Observer: p})
	if _, err := loop.Adopt(); err != nil {
		return err
	}
	addrs, err := bpf.Addrs()
	if err != nil {
		return err
	}
	p.store.SetNodeAddrs(addrs)
	for _, s := range p.held.services {
		p.store.SetService(s)
	}
	for _, s := range p.held.slices {
		p.store.SetSlice(s)
	}
	p.held = nil
	p.store.SetSynced()
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan error, 1)
	go func() { p.done <- loop.Run(ctx) }()
	if err := p.reconciled(); err != nil {
		return err
	}
	if err := p.programs.Attach(p.task.Root, p.task.Cgroup); err != nil {
		return err
	}
	p.packets.Start()
	p.parts.Go(func() error { return p.packets.Run(ctx) })
	expiry := bpf.NewExpiry(bpf.ExpiryOptions{Set: p.set, Log: zap.NewNop()})
	p.parts.Go(func() error { return expiry.Run(ctx) })
	debug.FreeOSMemory() // as the daemon does after its first sync
	return nil
}

// open creates the maps and loads the programs.
func (p *inside) open() (err error) {
	if err := bpf.RequireBPFFS(p.task.Root, false); err != nil {
		return err
	}
	if p.set, _, err = maps.Open(p.task.Root, p.task.Sizes); err != nil {
		return err
	}
	if p.kernel, err = maps.NewKernel(p.set); err != nil {
		return err
	}
	if p.programs, err = bpf.Load(p.set); err != nil {
		return err
	}
	seed, err := bpf.FlowSeed(p.task.Root)
	if err != nil {
		return err
	}
	ports, err := bpf.ReadSNATPorts()
	if err != nil {
		return err
	}
	p.packets, err = bpf.NewPacketPath(bpf.PacketPathOptions{Root: p.task.Root, Set: p.set, Maps: p.kernel, Log: zap.NewNop(),
		Programs: bpf.PacketOptions{SNATPorts: ports, FlowSeed: seed, ClusterCIDRs: []netip.Prefix{lab.ClusterCIDR4}}})
	return err
}

// reconciled waits for the loop's next report.
func (p *inside) reconciled() error {
	select {
	case r := <-p.reports:
		return r.Err
	case err := <-p.done:
		p.done <- err
		return fmt.Errorf("the loop ended: %w", err)
	}
}

// Reconciled is called by the loop. It passes the report to the waiting task.
func (p *inside) Reconciled(r lb.Report) {
	select {
	case p.reports <- r:
	default: // no task waits: the loop repeated a reconcile
	}
}

// SetHealthChecks is not measured.
func (p *inside) SetHealthChecks([]lb.HealthCheck) {}

// stop removes what load created.
func (p *inside) stop() error {
	var errs []error
	if p.cancel != nil {
		p.cancel()
		errs = append(errs, <-p.done, p.parts.Wait())
	}
	if p.packets != nil {
		errs = append(errs, p.packets.Close())
	}
	if p.programs != nil {
		errs = append(errs, bpf.Detach(p.task.Root), p.programs.Close())
	}
	if p.kernel != nil {
		errs = append(errs, p.kernel.Close())
	}
	if p.set != nil {
		errs = append(errs, p.set.Close())
	}
	*p = inside{reports: p.reports}
	return errors.Join(errs...)
}
