// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"shunt/bpf"
	"shunt/e2e/kube"
	"shunt/lab"
	"shunt/lb"
	"shunt/maps"
)

// BenchmarkFirstSync measures a start with all services already there. e2e runs the real
// daemon, built as it is shipped, against a real API server. store puts ten times as many
// services straight into the store, with maps of that size.
func BenchmarkFirstSync(b *testing.B) {
	b.Run("e2e/services=10000", func(b *testing.B) { benchmarkDaemon(b, 10_000, 10) })
	b.Run("store/services=100000", func(b *testing.B) { benchmarkStore(b, 100_000, 10) })
}

// settle is how long the benchmark waits before it measures the daemon's memory: the daemon
// frees what only the sync needed.
const settle = 2 * time.Second

// changes is how many changes are made after the sync, before memory is measured a second
// time.
const changes = 200

func benchmarkDaemon(b *testing.B, services, endpoints int) {
	cluster := kube.ForTest(b)
	client := cluster.Client()
	fillCluster(b, client, 0, services, endpoints)
	binary := buildDaemon(b)
	node := lab.ForTest(b).Node("n1")
	proxy, err := kube.NewProxy(node.NetnsPath(), cluster.Addr(), cluster.Addr())
	check(b, err)
	defer proxy.Close()
	kubeconfig := filepath.Join(b.TempDir(), "kubeconfig")
	check(b, cluster.Kubeconfig(kubeconfig))

	var figures samples
	for i := range b.N {
		root := filepath.Join(node.BPFFS(), fmt.Sprint("shunt-", i))
		d := startDaemon(b, node, fmt.Sprint("shunt-", i), binary, "run", "--kubeconfig", kubeconfig, "--node-name", "n1",
			"--cgroup-root", node.Cgroup(), "--bpffs-root", root, "--profiling")
		first := d.await(b, "reconciled")
		if first.Services < services {
			b.Fatalf("the first reconcile saw %d services, want %d", first.Services, services)
		}
		effect := d.await(b, "in effect")
		figures.add("first-reconcile-ms", first.Took*1e3)
		figures.add("start-to-effect-ms", float64(effect.Time.Sub(d.started).Microseconds())/1e3)
		time.Sleep(settle)
		figures.addMemory(b, "sync", d.cmd.PID())
		from := i*changes + 1
		for v := from; v < from+changes; v++ {
			updateSlice(b, client, v%services, endpoints, v)
		}
		awaitBackend(b, root, changedEndpoint(from+changes-1))
		figures.addMemory(b, "changes", d.cmd.PID())
		figures.addPeak(b, d.cmd.PID())
		check(b, d.stop())
		check(b, errors.Join(bpf.Detach(root), maps.Remove(root)))
	}
	figures.report(b)
}

// benchmarkStore shows that a large cluster fits into maps of its size.
func benchmarkStore(b *testing.B, services, endpoints int) {
	node := lab.ForTest(b).Node("n1")
	sizes := maps.DefaultSizes()
	sizes.Services, sizes.Slots, sizes.Backends = 1<<19, 1<<22, 1<<21
	var figures samples
	for i := range b.N {
		before := liveHeap()
		p := &proxy{root: filepath.Join(node.BPFFS(), fmt.Sprint("shunt-", i)),
			store: lb.NewStore(time.Now), reports: make(chan lb.Report, 16)}
		check(b, os.Mkdir(p.root, 0o700))
		fillServices(p.store, services, endpoints)
		p.store.SetSynced()
		report := p.reconcileOnce(b, node, sizes)
		if report.Err != nil || report.Failed > 0 || report.Services != services || int(report.Writes.Backends) != services*endpoints {
			b.Fatalf("of %d services %d failed, %d backends written: %v", report.Services, report.Failed, report.Writes.Backends, report.Err)
		}
		figures.add("first-reconcile-ms", float64(report.Ended.Sub(report.Started).Microseconds())/1e3)
		figures.add("heap-MB", float64(liveHeap()-before)/1e6)
		runtime.KeepAlive(p)
		check(b, errors.Join(p.kernel.Close(), p.set.Close(), maps.Remove(p.root)))
	}
	figures.report(b)
}

// reconcileOnce runs a loop on new maps until its first reconcile is done.
func (p *proxy) reconcileOnce(b *testing.B, node *lab.Node, sizes maps.Sizes) lb.Report {
	b.Helper()
	var err error
	p.set, _, err = maps.Open(p.root, sizes)
	check(b, err)
	p.kernel, err = maps.NewKernel(p.set)
	check(b, err)
	p.loop = lb.NewLoop(lb.LoopOptions{Store: p.store, Tables: p.kernel, Log: zap.NewNop(), Now: time.Now,
		NodeName: node.Name(), Observer: p})
	_, err = p.loop.Adopt()
	check(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.loop.Run(ctx) }()
	report := p.report(b)
	cancel()
	check(b, <-done)
	return report
}

func liveHeap() int64 {
	runtime.GC()
	runtime.GC() // frees what finalizers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// daemon is a `shunt run` with its log.
type daemon struct {
	cmd     *lab.Cmd
	started time.Time
	lines   chan logLine

	mu   sync.Mutex
	tail []string
}

// logLine has the fields of the daemon's log that the benchmark reads.
type logLine struct {
	Time     time.Time `json:"time"`
	Msg      string    `json:"msg"`
	Services int       `json:"services"`
	Took     float64   `json:"took"` // seconds
}

func buildDaemon(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "shunt")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "shunt")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build the daemon: %v\n%s", err, out)
	}
	return path
}

func startDaemon(b *testing.B, node *lab.Node, name, binary string, args ...string) *daemon {
	b.Helper()
	d := &daemon{lines: make(chan logLine, 64), started: time.Now()}
	d.cmd = node.HostPod(name).Command(b.Context(), binary, args...)
	out, in, err := os.Pipe()
	check(b, err)
	d.cmd.Stdout, d.cmd.Stderr = in, in
	check(b, d.cmd.Start())
	check(b, in.Close())
	go d.read(out)
	return d
}

// read passes on the log lines that await waits for, until the daemon ends.
func (d *daemon) read(out io.ReadCloser) {
	defer close(d.lines)
	defer out.Close()
	scanner := bufio.NewScanner(out)
	for scanner.Scan() {
		var l logLine
		if json.Unmarshal(scanner.Bytes(), &l) == nil && (l.Msg == "reconciled" || l.Msg == "in effect") {
			d.lines <- l
		}
		d.mu.Lock()
		d.tail = append(d.tail, scanner.Text())[max(0, len(d.tail)-20):]
		d.mu.Unlock()
	}
}

func (d *daemon) await(b *testing.B, msg string) logLine {
	b.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		select {
		case l, open := <-d.lines:
			if open && l.Msg == msg {
				return l
			}
			if open {
				continue
			}
		case <-deadline:
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		b.Fatalf("the daemon did not say %q; its log ends with:\n%s", msg, strings.Join(d.tail, "\n"))
	}
}

func (d *daemon) stop() error { return d.cmd.Stop(10 * time.Second) }

// awaitBackend waits until the pinned maps hold a backend with that address.
func awaitBackend(b *testing.B, root, addr string) {
	b.Helper()
	set, err := maps.Load(root)
	check(b, err)
	kernel, err := maps.NewKernel(set)
	check(b, err)
	defer func() { check(b, errors.Join(kernel.Close(), set.Close())) }()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		dump, err := kernel.Dump()
		check(b, err)
		for _, be := range dump.Backends {
			if be.AddrPort().Addr().String() == addr {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	b.Fatalf("endpoint %s is not in the maps after a minute", addr)
}

// samples collects figures by name and reports the median of each.
type samples struct {
	names  []string
	values map[string][]float64
}

func (s *samples) add(name string, v float64) {
	if s.values == nil {
		s.values = map[string][]float64{}
	}
	if _, known := s.values[name]; !known {
		s.names = append(s.names, name)
	}
	s.values[name] = append(s.values[name], v)
}

func (s *samples) report(b *testing.B) {
	b.ReportMetric(0, "ns/op") // ns/op of a round means nothing
	for _, name := range s.names {
		b.ReportMetric(median(s.values[name]), name)
	}
}

// addMemory adds the memory of a process, in MB of 10^6 bytes. RssFile includes mapped eBPF
// arrays, which the kernel counts for every process that maps them.
func (s *samples) addMemory(b *testing.B, when string, pid int) {
	b.Helper()
	for _, field := range []string{"VmRSS", "RssAnon", "RssFile"} {
		s.add(fmt.Sprintf("%s-%s-MB", field, when), procStatus(b, pid, field))
	}
}

func (s *samples) addPeak(b *testing.B, pid int) { s.add("VmHWM-MB", procStatus(b, pid, "VmHWM")) }

func procStatus(b *testing.B, pid int, field string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(b, err)
	for line := range bytes.Lines(text) {
		words := strings.Fields(string(line))
		if len(words) == 3 && words[0] == field+":" {
			kib, err := strconv.ParseFloat(words[1], 64)
			check(b, err)
			return kib * 1024 / 1e6
		}
	}
	b.Fatalf("/proc/%d/status has no %s", pid, field)
	return 0
}
