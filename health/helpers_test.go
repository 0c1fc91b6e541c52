// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"shunt/lb"
)

// patience bounds the wait of a test for something that should happen at once.
const patience = 30 * time.Second

// TestMain fails the package when goroutines outlive the tests: all goroutines of Run must
// have ended when it returns.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before && code == 0 {
		stacks := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after them:\n%s\n",
			before, n, stacks[:runtime.Stack(stacks, true)])
		code = 1
	}
	os.Exit(code)
}

// eventually polls until ok returns true, or fails with what.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %s: %s", patience, what)
}

// fixedStatus is a StatusSource that a test sets.
type fixedStatus struct {
	mu sync.Mutex
	st lb.Status
}

func (f *fixedStatus) Status() lb.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st
}

func (f *fixedStatus) set(change func(*lb.Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.st)
}

// noon is the time of the clock in all tests.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func atNoon() time.Time { return noon }

// inOrder is the status of a proxy that has nothing to do.
func inOrder() *fixedStatus {
	return &fixedStatus{st: lb.Status{Synced: true, LastSync: noon.Add(-time.Hour), Node: &lb.Node{Name: "n1"}}}
}

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

// start runs a server until the test ends. The test fails if Run does not end within
// patience. The tweaks are applied before it runs.
func start(t *testing.T, opts Options, status StatusSource, tweaks ...func(*Server)) (*Server, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	opts.Log = zap.New(core)
	if opts.Now == nil {
		opts.Now = atNoon
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.nodePorts.backoff = backoff{min: 10 * time.Millisecond, max: 20 * time.Millisecond}
	if status != nil {
		s.SetStatus(status)
	}
	for _, tweak := range tweaks {
		tweak(s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	for _, site := range []*site{s.healthz, s.metrics, s.probes} {
		if site != nil {
			eventually(t, site.name+" is served", func() bool { return site.bound().IsValid() })
		}
	}
	return s, logs
}

// reply is an HTTP answer that was read to its end.
type reply struct {
	code   int
	header http.Header
	body   string
}

// ask sends one request on a connection of its own, so that it always reaches the socket
// that is open now.
func ask(t *testing.T, method, url string) (reply, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(body)}, err
}

func get(t *testing.T, at netip.AddrPort, path string) reply {
	t.Helper()
	r, err := ask(t, http.MethodGet, "http://"+at.String()+path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ours is an address of the loopback network that no other process uses: its ports are
// free, whatever else runs on the machine.
var ours = netip.AddrFrom4([4]byte{127, byte(64 + os.Getpid()>>16&63), byte(os.Getpid() >> 8), byte(os.Getpid()) | 1})

// freePort returns the address ours with a port that is free at this moment.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l := take(t, netip.AddrPortFrom(ours, 0))
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// take binds an address.
func take(t *testing.T, addr netip.AddrPort) net.Listener {
	t.Helper()
	l, err := listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// decode reads a JSON object.
func decode(t *testing.T, body string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	return m
}

// mentions reports whether one of the texts contains the words.
func mentions(texts []any, words string) bool {
	for _, text := range texts {
		if s, ok := text.(string); ok && strings.Contains(s, words) {
			return true
		}
	}
	return false
}

var errDisk = errors.New("no room")
