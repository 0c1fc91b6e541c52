// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestWildcardServesBothFamilies(t *testing.T) {
	for _, wildcard := range []string{"0.0.0.0:0", "[::]:0"} {
		t.Run(wildcard, func(t *testing.T) {
			s, _ := start(t, Options{HealthzAddress: netip.MustParseAddrPort(wildcard)}, inOrder())
			for _, loopback := range []string{"127.0.0.1", "::1"} {
				at := netip.AddrPortFrom(netip.MustParseAddr(loopback), s.HealthzAddr().Port())
				if r := get(t, at, "/healthz"); r.code != http.StatusOK {
					t.Errorf("%s: %d %s", at, r.code, r.body)
				}
			}
		})
	}
}

// TestAddressTaken: without BindHardFail the other servers run, and this one as soon as its
// address is free. With BindHardFail, Run returns an error that says what to do.
func TestAddressTaken(t *testing.T) {
	at := freePort(t)
	other := take(t, at)
	defer other.Close()

	hard, err := New(Options{Log: zap.NewNop(), MetricsAddress: at, HealthzAddress: anyPort, BindHardFail: true})
	if err != nil {
		t.Fatal(err)
	}
	err = hard.Run(t.Context())
	for _, words := range []string{at.String(), "another process has that port", "--metrics-bind-address"} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("Run: %v, want one with %q", err, words)
		}
	}

	old := bindBackoff
	bindBackoff = backoff{min: 10 * time.Millisecond, max: 10 * time.Millisecond}
	defer func() { bindBackoff = old }()
	soft, err := New(Options{Log: zap.NewNop(), MetricsAddress: at, HealthzAddress: anyPort})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- soft.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	eventually(t, "healthz is served", func() bool { return soft.HealthzAddr().IsValid() })
	if soft.MetricsAddr().IsValid() {
		t.Errorf("metrics are served on %s, which is taken", soft.MetricsAddr())
	}
	other.Close()
	eventually(t, "metrics are served", func() bool { return soft.MetricsAddr() == at })
}

func TestBindHints(t *testing.T) {
	for err, want := range map[error]string{
		syscall.EADDRINUSE:    "another process",
		syscall.EADDRNOTAVAIL: "no such address",
		syscall.EACCES:        "CAP_NET_BIND_SERVICE",
		syscall.EINVAL:        "choose another address",
	} {
		hint := bindHint(&net.OpError{Op: "listen", Err: err}, "--flag")
		if !strings.Contains(hint, want) || !strings.Contains(hint, "--flag") {
			t.Errorf("%v: %q, want %q", err, hint, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	b := backoff{min: time.Second, max: 10 * time.Second}
	for failures, want := range map[int]time.Duration{1: 1, 2: 2, 3: 4, 4: 8, 5: 10, 1000: 10} {
		if got := b.after(failures); got != want*time.Second {
			t.Errorf("after %d failures: %s, want %ds", failures, got, want)
		}
	}
}

// TestEndsInTime: open connections, idle or with an incomplete request, don't keep Run from
// ending (start's cleanup checks it).
func TestEndsInTime(t *testing.T) {
	s, _ := start(t, Options{HealthzAddress: anyPort}, inOrder())
	for _, sent := range []string{"", "GET /healthz HTTP/1.1\r\n", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"} {
		conn, err := net.Dial("tcp", s.HealthzAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := conn.Write([]byte(sent)); err != nil {
			t.Fatal(err)
		}
	}
	// After this answer the server has accepted all of them.
	if r := get(t, s.HealthzAddr(), "/healthz"); r.code != http.StatusOK {
		t.Error(r)
	}
}

// TestSocketFails: serve returns an error if its socket fails.
func TestSocketFails(t *testing.T) {
	l := take(t, anyPort)
	failed := make(chan error, 1)
	go func() { failed <- serve(t.Context(), l, http.NotFoundHandler(), zap.NewNop()) }()
	l.Close()
	select {
	case err := <-failed:
		if err == nil {
			t.Error("serve ended without an error, and without having been told to")
		}
	case <-time.After(patience):
		t.Fatal("serve goes on without a socket")
	}
}

func TestBadOptions(t *testing.T) {
	for name, opts := range map[string]Options{
		"logger":   {},
		"negative": {Log: zap.NewNop(), Timeout: -time.Second},
		"configz":  {Log: zap.NewNop(), MetricsAddress: anyPort, Config: make(chan int)},
	} {
		if _, err := New(opts); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("New: %v, want one with %q", err, name)
		}
	}
}
