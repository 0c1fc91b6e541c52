// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"shunt/lb"
)

var web = lb.ServiceName{Namespace: "shop", Name: "web"}

// startChecks starts a server with healthCheckNodePorts on the address ours only.
func startChecks(t *testing.T, opts Options, st StatusSource) *Server {
	t.Helper()
	opts.SelectAddresses = true
	s, _ := start(t, opts, st)
	s.SetNodePortAddresses([]netip.Addr{ours})
	return s
}

// served polls until the port answers, and returns the answer.
func served(t *testing.T, at netip.AddrPort) reply {
	t.Helper()
	var r reply
	eventually(t, at.String()+" is served", func() bool {
		var err error
		r, err = ask(t, http.MethodGet, "http://"+at.String())
		return err == nil
	})
	return r
}

func closed(t *testing.T, at netip.AddrPort) {
	t.Helper()
	eventually(t, at.String()+" is closed", func() bool {
		_, err := ask(t, http.MethodGet, "http://"+at.String())
		return err != nil
	})
}

// TestHealthCheckAnswers compares code, headers and body, byte for byte.
func TestHealthCheckAnswers(t *testing.T) {
	tests := []struct {
		name      string
		endpoints int
		change    func(*lb.Status)
		code      int
		healthy   bool
	}{
		{"two here", 2, func(*lb.Status) {}, http.StatusOK, true},
		{"none here", 0, func(*lb.Status) {}, http.StatusServiceUnavailable, true},
		{"one here, and the proxy behind", 1, func(s *lb.Status) { s.QueuedSince = noon.Add(-time.Hour) },
			http.StatusServiceUnavailable, false},
		{"one here, and the Node being deleted", 1, func(s *lb.Status) { s.Node.Deleting = true }, http.StatusOK, true},
		{"one here, and no Node", 1, func(s *lb.Status) { s.Node = nil }, http.StatusOK, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := inOrder()
			st.set(tt.change)
			s := startChecks(t, Options{RequireNode: true}, st)
			at := freePort(t)
			s.SetHealthChecks([]lb.HealthCheck{{Service: web, Family: lb.IPv4, Port: at.Port(), LocalEndpoints: tt.endpoints}})
			r := served(t, at)
			want := fmt.Sprintf(`{"service":{"namespace":"shop","name":"web"},"localEndpoints":%d,"serviceProxyHealthy":%v}`,
				tt.endpoints, tt.healthy)
			if r.code != tt.code || strings.TrimSuffix(r.body, "\n") != want {
				t.Errorf("%d %s, want %d %s", r.code, r.body, tt.code, want)
			}
			for name, value := range map[string]string{
				"Content-Type":                     "application/json",
				"X-Content-Type-Options":           "nosniff",
				"X-Load-Balancing-Endpoint-Weight": fmt.Sprint(tt.endpoints),
			} {
				if got := r.header.Values(name); len(got) != 1 || got[0] != value {
					t.Errorf("%s: %q, want %q", name, got, value)
				}
			}
		})
	}
}

// TestAnyRequest: the answer is the same for any method and path.
func TestAnyRequest(t *testing.T) {
	s := startChecks(t, Options{}, inOrder())
	at := freePort(t)
	s.SetHealthChecks([]lb.HealthCheck{{Service: web, Family: lb.IPv4, Port: at.Port(), LocalEndpoints: 1}})
	served(t, at)
	for _, line := range []string{
		"GET /", "GET //a/../b", "HEAD /healthz", "POST /x?y=z", "DELETE /a%2fb", "OPTIONS *", "PURGE /", "CONNECT x:1",
	} {
		conn, err := net.DialTimeout("tcp", at.String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", line); err != nil {
			t.Fatal(err)
		}
		status, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || strings.TrimSpace(status) != "HTTP/1.1 200 OK" {
			t.Errorf("%s: %q, %v", line, status, err)
		}
		conn.Close()
	}
}

// TestHealthChecksFollow: the number of endpoints changes on an open socket; sockets are
// opened and closed.
func TestHealthChecksFollow(t *testing.T) {
	s := startChecks(t, Options{}, inOrder())
	one, two := freePort(t), freePort(t)
	db := lb.ServiceName{Namespace: "shop", Name: "db"}
	s.SetHealthChecks([]lb.HealthCheck{{Service: db, Family: lb.IPv4, Port: one.Port(), LocalEndpoints: 1},
		{Service: web, Family: lb.IPv4, Port: two.Port(), LocalEndpoints: 1}})
	if r := served(t, one); !strings.Contains(r.body, `"db"`) {
		t.Error(r.body)
	}
	served(t, two)

	// A client that stays connected gets the new number on its connection.
	conn, err := net.DialTimeout("tcp", two.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	from := bufio.NewReader(conn)
	weight := func() string {
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(from, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, _ = bufio.NewReader(resp.Body).ReadString('\n')
		return resp.Header.Get("X-Load-Balancing-Endpoint-Weight")
	}
	if got := weight(); got != "1" {
		t.Errorf("weight %s, want 1", got)
	}
	s.SetHealthChecks([]lb.HealthCheck{{Service: db, Family: lb.IPv4, Port: one.Port(), LocalEndpoints: 1},
		{Service: web, Family: lb.IPv4, Port: two.Port(), LocalEndpoints: 7}})
	eventually(t, "the weight is 7", func() bool { return weight() == "7" })

	// The port of db moves to web in one change, and web's own is closed.
	s.SetHealthChecks([]lb.HealthCheck{{Service: web, Family: lb.IPv4, Port: one.Port(), LocalEndpoints: 7}})
	closed(t, two)
	if r := served(t, one); !strings.Contains(r.body, `"web"`) {
		t.Error(r.body)
	}
	s.SetHealthChecks(nil)
	closed(t, one)
}

// bindFailures records the calls of Options.BindFailed.
type bindFailures struct {
	mu  sync.Mutex
	all []string
}

func (b *bindFailures) add(service lb.ServiceName, port uint16, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, fmt.Sprintf("%s %d %v", service, port, err))
}

func (b *bindFailures) list() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.all...)
}

// TestHealthCheckPortTaken: a port in use is reported once and tried again; the other ports
// are served.
func TestHealthCheckPortTaken(t *testing.T) {
	var failures bindFailures
	s := startChecks(t, Options{BindFailed: failures.add}, inOrder())
	taken, free := freePort(t), freePort(t)
	other := take(t, taken)
	defer other.Close()
	s.SetHealthChecks([]lb.HealthCheck{{Service: lb.ServiceName{Namespace: "a", Name: "b"}, Family: lb.IPv4, Port: taken.Port()},
		{Service: web, Family: lb.IPv4, Port: free.Port()}})
	served(t, free)
	eventually(t, "the failure is told", func() bool { return len(failures.list()) > 0 })
	for _, words := range []string{"a/b ", fmt.Sprint(taken.Port()), "another process has that port"} {
		if got := failures.list()[0]; !strings.Contains(got, words) {
			t.Errorf("%q has no %q", got, words)
		}
	}
	other.Close()
	served(t, taken)
	if got := failures.list(); len(got) != 1 {
		t.Errorf("told %d times: %q", len(got), got)
	}
	// The port is in use once more: a second row of failures is reported too.
	s.SetHealthChecks(nil)
	closed(t, taken)
	again := take(t, taken)
	defer again.Close()
	s.SetHealthChecks([]lb.HealthCheck{{Service: web, Family: lb.IPv4, Port: taken.Port()}})
	eventually(t, "the second spell is told", func() bool { return len(failures.list()) == 2 })
}

// TestHealthCheckAddresses: the sockets listen only on the selected addresses, which may
// change.
func TestHealthCheckAddresses(t *testing.T) {
	s, _ := start(t, Options{SelectAddresses: true}, inOrder())
	v4 := freePort(t)
	v6 := netip.AddrPortFrom(netip.IPv6Loopback(), v4.Port())
	s.SetHealthChecks([]lb.HealthCheck{{Service: web, Family: lb.IPv4, Port: v4.Port()}, {Service: web, Family: lb.IPv6, Port: v4.Port()}})
	s.SetNodePortAddresses([]netip.Addr{v6.Addr(), netip.IPv4Unspecified()})
	served(t, v6)
	closed(t, v4)
	s.SetNodePortAddresses([]netip.Addr{ours})
	served(t, v4)
	closed(t, v6)
	s.SetNodePortAddresses(nil)
	closed(t, v4)
}

// TestHealthCheckEveryAddress: by default there is a server for each family, with the
// number of endpoints of that family. SetNodePortAddresses has no effect.
func TestHealthCheckEveryAddress(t *testing.T) {
	s, _ := start(t, Options{}, inOrder())
	v4 := freePort(t)
	v6 := netip.AddrPortFrom(netip.IPv6Loopback(), v4.Port())
	check := func(family lb.Family, n int) lb.HealthCheck {
		return lb.HealthCheck{Service: web, Family: family, Port: v4.Port(), LocalEndpoints: n}
	}
	s.SetHealthChecks([]lb.HealthCheck{check(lb.IPv4, 1), check(lb.IPv6, 0)})
	s.SetNodePortAddresses(nil)
	for at, want := range map[netip.AddrPort]int{
		v4: http.StatusOK, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), v4.Port()): http.StatusOK,
		v6: http.StatusServiceUnavailable,
	} {
		if r := served(t, at); r.code != want {
			t.Errorf("%v: %d, want %d: %s", at, r.code, want, r.body)
		}
	}
	s.SetHealthChecks([]lb.HealthCheck{check(lb.IPv6, 1)})
	closed(t, v4) // a service without IPv4 is not served on IPv4
	if r := served(t, v6); r.code != http.StatusOK {
		t.Errorf("%d: %s", r.code, r.body)
	}
}

// TestPortsFreedBySomebody: a port that another process has closed is served within 2 s,
// however long it was in use. The failure is logged once a minute at most.
func TestPortsFreedBySomebody(t *testing.T) {
	if bindBackoff.after(1000) > time.Second {
		t.Errorf("after many failures %s pass between attempts", bindBackoff.after(1000))
	}
	healthz, check := freePort(t), freePort(t)
	others := []net.Listener{take(t, healthz), take(t, check)}
	core, logs := observer.New(zap.ErrorLevel)
	now := func() time.Time { return noon }
	s, err := New(Options{Log: zap.New(core), HealthzAddress: healthz, SelectAddresses: true, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	s.SetNodePortAddresses([]netip.Addr{ours})
	s.SetHealthChecks([]lb.HealthCheck{{Service: web, Family: lb.IPv4, Port: check.Port()}})
	// Long enough for a wait that doubles without limit to exceed 2 s.
	if !stays(4*time.Second, func() bool { return !s.HealthzAddr().IsValid() }) {
		t.Fatal("a taken port is served")
	}
	for _, o := range others {
		o.Close()
	}
	freed := time.Now()
	served(t, healthz)
	served(t, check)
	if took := time.Since(freed); took > 2*time.Second {
		t.Errorf("served %s after the ports were free", took)
	}
	if n := logs.FilterMessageSnippet("cannot serve healthz").Len(); n != 1 {
		t.Errorf("%d lines say that healthz can't be served", n)
	}
}

// stays polls for a time, and reports whether the condition was always true.
func stays(d time.Duration, is func() bool) bool {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if !is() {
			return false
		}
	}
	return true
}

// TestBrokenSocketIsReopened closes the socket of a running server: it is opened again.
func TestBrokenSocketIsReopened(t *testing.T) {
	var failures bindFailures
	opened := make(chan net.Listener, 2)
	s, logs := start(t, Options{SelectAddresses: true, BindFailed: failures.add}, inOrder(), func(s *Server) {
		s.nodePorts.listen = func(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
			l, err := listen(ctx, at)
			opened <- l
			return l, err
		}
	})
	at := freePort(t)
	s.SetNodePortAddresses([]netip.Addr{ours})
	s.SetHealthChecks([]lb.HealthCheck{{Service: web, Family: lb.IPv4, Port: at.Port()}})
	served(t, at)
	(<-opened).Close()
	eventually(t, "the loss is told", func() bool { return len(failures.list()) == 1 })
	served(t, at)
	if logs.FilterMessageSnippet("lost its socket").Len() != 1 {
		t.Error("the loss is not in the log")
	}
}
