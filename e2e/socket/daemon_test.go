package socket_test

import (
	"bufio"
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
	"sync"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/lab"
	"shunt/maps"
)

const (
	healthzAddr = "127.0.0.1:10256"
	metricsAddr = "127.0.0.1:10249"
	// patience bounds every wait for something that happens by itself, on a machine
	// that may have much else to do.
	patience = 60 * time.Second
	// self is this executable, whatever happens to its file meanwhile.
	self = "/proc/self/exe"
)

// daemon is `shunt run` on a node of the lab, as a process of its own.
type daemon struct {
	t    *testing.T
	node *lab.Node
	pod  *lab.Pod // the process's place: the node's network, a cgroup below its
	root string   // --bpffs-root
	args []string
	cmd  *lab.Cmd
	log  *logText
}

// newDaemon prepares a daemon; later flags win over those that are set here.
func newDaemon(t *testing.T, node *lab.Node, manifests string, flags ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, node: node, pod: node.HostPod("shunt"), root: filepath.Join(node.BPFFS(), "shunt"), log: &logText{}}
	d.args = append([]string{"run", "--manifests", manifests, "--node-name", node.Name(),
		"--cgroup-root", node.Cgroup(), "--bpffs-root", d.root,
		"--services-map-size", "1024", "--slots-map-size", "4096", "--backends-map-size", "1024", "--affinity-map-size", "1024",
		"--healthz-bind-address", healthzAddr, "--metrics-bind-address", metricsAddr}, flags...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the daemon on %s:\n%s", node.Name(), d.log.tail(40))
		}
	})
	return d
}

// startDaemon prepares a daemon, starts it and waits until it is healthy.
func startDaemon(t *testing.T, node *lab.Node, manifests string, flags ...string) *daemon {
	t.Helper()
	d := newDaemon(t, node, manifests, flags...)
	d.start()
	return d
}

// launch starts the process, with more flags than before if any are given. The
// log begins anew.
func (d *daemon) launch(flags ...string) {
	d.t.Helper()
	d.args = append(d.args, flags...)
	d.log.reset()
	d.cmd = d.pod.Command(context.Background(), self, d.args...)
	d.cmd.Stderr, d.cmd.Stdout = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) start(flags ...string) {
	d.t.Helper()
	d.launch(flags...)
	d.waitHealthy()
}

// alive says whether the process runs.
func (d *daemon) alive() bool {
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.cmd.Done():
		return false
	default:
		return true
	}
}

// kill ends the process by SIGKILL.
func (d *daemon) kill() {
	d.t.Helper()
	if err := d.cmd.Signal(syscall.SIGKILL); err != nil {
		d.t.Fatalf("kill the daemon: %v; its log:\n%s", err, d.log.tail(40))
	}
	_ = d.cmd.Wait() // says that it was killed
}

// stop ends the process by SIGTERM, which it must do well and soon.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.cmd.Stop(patience); err != nil {
		d.t.Fatalf("the daemon did not end well: %v; its log:\n%s", err, d.log.tail(40))
	}
}

func exitCodeOf(t *testing.T, err error) int {
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

// health is the body of healthz.
type health struct {
	code         int
	LastUpdated  *time.Time
	NodeEligible bool
	Reasons      []string
	Warnings     []string
}

func (d *daemon) healthz() (h health, err error) {
	code, body, err := d.get(healthzAddr, "/healthz")
	if err == nil {
		err = json.Unmarshal(body, &h)
	}
	h.code = code
	return h, err
}

func (d *daemon) get(addr, path string) (code int, body []byte, err error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: d.node.DialContext, DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + path)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	return resp.StatusCode, body, err
}

func (d *daemon) waitHealthy() {
	d.t.Helper()
	eventually(d.t, "the daemon on "+d.node.Name()+" is healthy", func() bool {
		if !d.alive() {
			d.t.Fatalf("the daemon on %s ended: %v; its log:\n%s", d.node.Name(), d.cmd.Wait(), d.log.tail(40))
		}
		h, err := d.healthz()
		return err == nil && h.code == http.StatusOK
	})
}

// metrics gives samples by name and labels, as they are written.
func (d *daemon) metrics() map[string]float64 {
	d.t.Helper()
	code, body, err := d.get(metricsAddr, "/metrics")
	if err != nil || code != http.StatusOK {
		d.t.Fatalf("metrics: %d, %v", code, err)
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

// kernel opens what the daemon has pinned, for as long as use takes.
func (d *daemon) kernel(use func(*maps.Kernel)) error {
	set, err := maps.Load(d.root)
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

func (d *daemon) dump() *maps.Dump {
	d.t.Helper()
	var dump *maps.Dump
	var dumpErr error
	err := d.kernel(func(k *maps.Kernel) { dump, dumpErr = k.Dump() })
	if err := errors.Join(err, dumpErr); err != nil {
		d.t.Fatal(err)
	}
	return dump
}

// reasons gives the programs' counts of why they ended.
func (d *daemon) reasons() map[string]uint64 {
	d.t.Helper()
	var counts map[string]uint64
	var readErr error
	err := d.kernel(func(k *maps.Kernel) { counts, readErr = k.Reasons() })
	if err := errors.Join(err, readErr); err != nil {
		d.t.Fatal(err)
	}
	return counts
}

// shunt runs a command of shunt's to its end.
func shunt(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return runCommand(t, exec.Command(self, args...))
}

func runCommand(t *testing.T, c *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	c.Stdout, c.Stderr = &out, &err
	code = exitCodeOf(t, c.Run())
	return out.String(), err.String(), code
}

// logText is what a daemon has logged.
type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logText) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logText) tail(lines int) string {
	all := strings.Split(strings.TrimSpace(l.String()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// find gives the fields of the first line with that message, nil: there is none.
func (l *logText) find(message string) map[string]any {
	lines := bufio.NewScanner(strings.NewReader(l.String()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var fields map[string]any
		if json.Unmarshal(lines.Bytes(), &fields) == nil && fields["msg"] == message {
			return fields
		}
	}
	return nil
}

// eventually waits until a condition holds, and fails the test if it never does.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
