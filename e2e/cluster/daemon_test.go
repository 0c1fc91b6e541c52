// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"shunt/bpf"
	"shunt/lab"
	"shunt/maps"
)

// daemonOptions describe how to run the daemon. Comments name the meaning of zero values.
type daemonOptions struct {
	name string // unique on the node
	node *node
	// nodeName is the node's name by default.
	nodeName string
	// cgroup is the node's by default, root is named after the daemon.
	cgroup, root string
	// kubeconfig is the administrator's by default. If manifests is set, it is used
	// instead.
	kubeconfig, manifests string
	// healthz, metrics and probes are the addresses of the servers. By default there are
	// none.
	healthz, metrics, probes string
	flags                    []string
}

// daemon is a running `shunt run`, a separate process on a node.
type daemon struct {
	o     daemonOptions
	cmd   *lab.Cmd
	began time.Time
	log   logBuffer
}

// run starts a daemon. It ends with the lab at the latest.
func (f *fixture) run(o daemonOptions) (*daemon, error) {
	if o.nodeName == "" {
		o.nodeName = o.node.Name()
	}
	if o.cgroup == "" {
		o.cgroup = o.node.Cgroup()
	}
	if o.root == "" {
		o.root = filepath.Join(o.node.BPFFS(), o.name)
	}
	if o.kubeconfig == "" {
		o.kubeconfig = f.kubeconfig()
	}
	args := []string{"run", "--node-name", o.nodeName, "--cgroup-root", o.cgroup, "--bpffs-root", o.root,
		"--healthz-bind-address", o.healthz, "--metrics-bind-address", o.metrics, "--probe-bind-address", o.probes}
	if o.manifests != "" {
		args = append(args, "--manifests", o.manifests)
	} else {
		args = append(args, "--kubeconfig", o.kubeconfig)
	}
	pod := o.node.HostPod(fmt.Sprintf("shunt-%s-%d", o.name, f.starts.Add(1)))
	if err := f.lab.Err(); err != nil {
		return nil, err
	}
	d := &daemon{o: o, began: time.Now()}
	d.cmd = pod.Command(context.Background(), "/proc/self/exe", append(args, o.flags...)...)
	d.cmd.Env = shuntEnv()
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	return d, d.cmd.Start()
}

// shuntEnv returns the environment of shunt. It disables the wait of a second at the end of
// every process by the race detector's run-time library.
func shuntEnv() []string { return append(os.Environ(), "GORACE=atexit_sleep_ms=0") }

// runFor runs a daemon for the time of a test, which must not end by itself, and removes
// what it leaves. The test may kill it.
func (f *fixture) runFor(t *testing.T, o daemonOptions) *daemon {
	t.Helper()
	d, err := f.run(o)
	check(t, err)
	t.Cleanup(func() {
		d.stop(t)
		if err := errors.Join(bpf.Detach(d.o.root), maps.Remove(d.o.root)); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the log of daemon %s ends with:\n%s", d.o.name, d.log.tail(40))
		}
	})
	return d
}

// again starts the daemon again, after it has ended.
func (d *daemon) again(t *testing.T, f *fixture) *daemon {
	t.Helper()
	<-d.cmd.Done()
	return f.runFor(t, d.o)
}

// kill ends it by SIGKILL, as the kernel does when memory runs out.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	check(t, d.cmd.Signal(syscall.SIGKILL))
	<-d.cmd.Done()
}

// stopTimeout bounds the end of a daemon, on a busy machine.
const stopTimeout = 30 * time.Second

// stop asks a daemon to end. If it does not, or not with success, the test fails and shows
// the stacks of its goroutines.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if d.alive() == nil {
		check(t, d.cmd.Signal(syscall.SIGTERM))
		select {
		case <-d.cmd.Done():
		case <-time.After(stopTimeout):
			t.Errorf("daemon %s does not end", d.o.name)
			_ = d.cmd.Signal(syscall.SIGQUIT) // it may have ended by now
		}
		if err := d.cmd.Stop(stopTimeout); err != nil {
			t.Errorf("daemon %s ended with %v:\n%s", d.o.name, err, d.log.tail(400))
		}
	}
	d.sound(t)
}

// sound fails the test if the daemon's log has a message that must never occur.
func (d *daemon) sound(t *testing.T) {
	t.Helper()
	for _, bad := range []string{"DATA RACE", "panic", "fatal error"} {
		if d.log.count(bad) > 0 {
			t.Errorf("daemon %s: %s:\n%s", d.o.name, bad, d.log.tail(200))
		}
	}
}

// alive returns an error if the daemon has ended.
func (d *daemon) alive() error {
	select {
	case <-d.cmd.Done():
		return errors.Join(fmt.Errorf("daemon %s has ended", d.o.name), d.cmd.Wait())
	default:
		return nil
	}
}

// awaitLog waits for a log line that contains all of these texts.
func (d *daemon) awaitLog(ctx context.Context, texts ...string) error {
	err := poll(ctx, fmt.Sprintf("daemon %s says %q", d.o.name, texts), func() error {
		if d.log.count(texts...) > 0 {
			return nil
		}
		return errors.Join(errors.New("it has not"), d.alive())
	})
	if err != nil {
		return fmt.Errorf("%w; its log ends with:\n%s", err, d.log.tail(20))
	}
	return nil
}

func (d *daemon) await(t *testing.T, texts ...string) {
	t.Helper()
	check(t, d.awaitLog(t.Context(), texts...))
}

// get makes a request to the daemon's HTTP servers from its node.
func (d *daemon) get(address, path string) (code int, body string, err error) {
	transport := &http.Transport{DialContext: d.o.node.DialContext}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + strings.Replace(address, "0.0.0.0", "127.0.0.1", 1) + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// answers waits until a path of healthz returns a code and a text.
func (d *daemon) answers(t *testing.T, path string, want int, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s of daemon %s says %d %q", path, d.o.name, want, text), func() error {
		code, body, err := d.get(d.o.healthz, path)
		if err == nil && (code != want || !strings.Contains(body, text)) {
			err = fmt.Errorf("it says %d: %s", code, body)
		}
		return err
	})
}

// logBuffer keeps a daemon's log.
type logBuffer struct {
	mu   sync.Mutex
	text []byte
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *logBuffer) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(string(bytes.TrimSpace(l.text)), "\n")
}

// with returns the lines that contain all of these texts.
func (l *logBuffer) with(texts ...string) []string {
	return slices.DeleteFunc(l.lines(), func(line string) bool {
		return slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) })
	})
}

func (l *logBuffer) count(texts ...string) int { return len(l.with(texts...)) }

func (l *logBuffer) tail(n int) string {
	lines := l.lines()
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// field returns a number of the last line with this message.
func (l *logBuffer) field(t *testing.T, msg, field string) float64 {
	t.Helper()
	lines := l.with(`"msg":"` + msg + `"`)
	if len(lines) == 0 {
		t.Fatalf("no line says %q", msg)
	}
	var all map[string]any
	check(t, json.Unmarshal([]byte(lines[len(lines)-1]), &all))
	v, ok := all[field].(float64)
	if !ok {
		t.Fatalf("no number %q in %s", field, lines[len(lines)-1])
	}
	return v
}

// metrics returns the daemon's metrics by the text before the value in the text format.
func (d *daemon) metrics(t *testing.T) map[string]float64 {
	t.Helper()
	code, text, err := d.get(d.o.metrics, "/metrics")
	if err != nil || code != http.StatusOK {
		t.Fatalf("metrics of daemon %s: %d, %v", d.o.name, code, err)
	}
	all := map[string]float64{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(line[at+1:], 64)
		check(t, err)
		all[line[:at]] = v
	}
	return all
}
