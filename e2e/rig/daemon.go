// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/lab"
	"shunt/maps"
)

const (
	// HealthzAddr is the address of probes of the daemons here.
	HealthzAddr = "127.0.0.1:10256"
	// MetricsAddr is the address of their metrics.
	MetricsAddr = "127.0.0.1:10249"
	// Patience bounds every wait for an asynchronous event, on a busy machine. In a VM, the
	// kernel alone takes seconds to verify a daemon's programs, one daemon after the other.
	Patience = 4 * time.Minute
	// Self is this executable, even if its file was replaced.
	Self = "/proc/self/exe"
)

// Daemon is `shunt run` on a node of the lab, as a separate process.
type Daemon struct {
	T    *testing.T
	Node *lab.Node
	Pod  *lab.Pod // the node's network namespace, and a cgroup below the node's
	Root string   // --bpffs-root
	Args []string // of the command line
	Cmd  *lab.Cmd // nil before the first Launch
	Log  *LogText
}

// NewDaemon prepares a daemon. Later flags override those that are set here.
func NewDaemon(t *testing.T, node *lab.Node, manifests string, flags ...string) *Daemon {
	t.Helper()
	d := &Daemon{T: t, Node: node, Pod: node.HostPod("shunt"), Root: filepath.Join(node.BPFFS(), "shunt"), Log: &LogText{}}
	d.Args = append([]string{"run", "--manifests", manifests, "--node-name", node.Name(),
		"--cgroup-root", node.Cgroup(), "--bpffs-root", d.Root,
		"--services-map-size", "1024", "--slots-map-size", "4096", "--backends-map-size", "1024", "--affinity-map-size", "1024",
		"--healthz-bind-address", HealthzAddr, "--metrics-bind-address", MetricsAddr}, flags...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the daemon on %s:\n%s", node.Name(), d.Log.Tail(40))
		}
	})
	return d
}

// StartDaemon prepares a daemon, starts it and waits until it is healthy.
func StartDaemon(t *testing.T, node *lab.Node, manifests string, flags ...string) *Daemon {
	t.Helper()
	d := NewDaemon(t, node, manifests, flags...)
	d.Start()
	return d
}

// Launch starts the process, with further flags if any are given. The log is emptied.
func (d *Daemon) Launch(flags ...string) {
	d.T.Helper()
	d.Args = append(d.Args, flags...)
	d.Log.Reset()
	d.Cmd = d.Pod.Command(context.Background(), Self, d.Args...)
	d.Cmd.Stderr, d.Cmd.Stdout = d.Log, d.Log
	if err := d.Cmd.Start(); err != nil {
		d.T.Fatal(err)
	}
}

// Start starts the process and waits until it is healthy.
func (d *Daemon) Start(flags ...string) {
	d.T.Helper()
	d.Launch(flags...)
	d.WaitHealthy()
}

// Alive reports whether the process runs.
func (d *Daemon) Alive() bool {
	if d.Cmd == nil {
		return false
	}
	select {
	case <-d.Cmd.Done():
		return false
	default:
		return true
	}
}

// Kill ends the process by SIGKILL.
func (d *Daemon) Kill() {
	d.T.Helper()
	if err := d.Cmd.Signal(syscall.SIGKILL); err != nil {
		d.T.Fatalf("kill the daemon: %v; its log:\n%s", err, d.Log.Tail(40))
	}
	_ = d.Cmd.Wait() // returns that it was killed
}

// Stop ends the process by SIGTERM. It must exit with success within Patience.
func (d *Daemon) Stop() {
	d.T.Helper()
	if err := d.Cmd.Stop(Patience); err != nil {
		d.T.Fatalf("the daemon did not end well: %v; its log:\n%s", err, d.Log.Tail(40))
	}
}

// ExitCodeOf returns the exit code of a process that ended with that error.
func ExitCodeOf(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	}
	t.Fatalf("the process ended neither well nor by itself: %v", err)
	return -1
}

// Health is the body of healthz.
type Health struct {
	Code         int
	LastUpdated  *time.Time
	NodeEligible bool
	Reasons      []string
	Warnings     []string
}

// Healthz returns the daemon's health.
func (d *Daemon) Healthz() (h Health, err error) {
	code, body, err := d.Get(HealthzAddr, "/healthz")
	if err == nil {
		err = json.Unmarshal(body, &h)
	}
	h.Code = code
	return h, err
}

// Get makes a request to one of the daemon's addresses.
func (d *Daemon) Get(addr, path string) (code int, body []byte, err error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: d.Node.DialContext, DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + path)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	return resp.StatusCode, body, err
}

// WaitHealthy waits until healthz reports health, for what this daemon has programmed: one
// that has adopted maps is healthy before it has read any object.
func (d *Daemon) WaitHealthy() {
	d.T.Helper()
	Eventually(d.T, "the daemon on "+d.Node.Name()+" is healthy", func() bool {
		if !d.Alive() {
			d.T.Fatalf("the daemon on %s ended: %v; its log:\n%s", d.Node.Name(), d.Cmd.Wait(), d.Log.Tail(40))
		}
		h, err := d.Healthz()
		return err == nil && h.Code == http.StatusOK && h.LastUpdated != nil
	})
}

// Metrics returns samples by name and labels, as in the text format.
func (d *Daemon) Metrics() map[string]float64 {
	d.T.Helper()
	code, body, err := d.Get(MetricsAddr, "/metrics")
	if err != nil || code != http.StatusOK {
		d.T.Fatalf("metrics: %d, %v", code, err)
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(line[at+1:], 64); err == nil {
			all[line[:at]] = v
		}
	}
	return all
}

// Kernel opens the daemon's pinned maps and calls use with them.
func (d *Daemon) Kernel(use func(*maps.Kernel)) error {
	set, err := maps.Load(d.Root)
	if err != nil {
		return err
	}
	k, err := maps.NewKernel(set)
	if err != nil {
		return errors.Join(err, set.Close())
	}
	use(k)
	return errors.Join(k.Close(), set.Close())
}

// Dump returns the content of the maps.
func (d *Daemon) Dump() *maps.Dump {
	d.T.Helper()
	var dump *maps.Dump
	var dumpErr error
	err := d.Kernel(func(k *maps.Kernel) { dump, dumpErr = k.Dump() })
	if err := errors.Join(err, dumpErr); err != nil {
		d.T.Fatal(err)
	}
	return dump
}

// Reasons returns the programs' counters by reason.
func (d *Daemon) Reasons() map[string]uint64 {
	d.T.Helper()
	var counts map[string]uint64
	var readErr error
	err := d.Kernel(func(k *maps.Kernel) { counts, readErr = k.Reasons() })
	if err := errors.Join(err, readErr); err != nil {
		d.T.Fatal(err)
	}
	return counts
}

// Shunt runs a command of shunt to its end.
func Shunt(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return RunCommand(t, exec.Command(Self, args...))
}

// RunCommand runs a command to its end.
func RunCommand(t *testing.T, c *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	c.Stdout, c.Stderr = &out, &err
	code = ExitCodeOf(t, c.Run())
	return out.String(), err.String(), code
}

// Eventually waits until a condition holds, and fails the test after Patience. The interval
// between checks grows, so that a slow machine can do other work.
func Eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	start := time.Now()
	for !holds() {
		waited := time.Since(start)
		if waited > Patience {
			t.Fatalf("waited %v in vain: %s", Patience, what)
		}
		time.Sleep(min(max(waited/8, 2*time.Millisecond), 100*time.Millisecond))
	}
}
