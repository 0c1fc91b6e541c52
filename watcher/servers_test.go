// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"encoding/json"
	"fmt"
	stdmaps "maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// closedPort returns an address of this machine that refuses connections.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return addrOf(l)
}

func addrOf(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

// stranger returns the address of a server that accepts connections and closes them: a
// program that now has an address at which an API server was before.
func stranger(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	})
	t.Cleanup(func() { must(t, l.Close()); wg.Wait() })
	return addrOf(l)
}

// translations are the endpoints to which a node translates connections to the API
// server's address, and the endpoints that a daemon saved for the next one.
type translations struct {
	mu    sync.Mutex
	leads map[netip.AddrPort][]netip.AddrPort
	saved Endpoints
}

func (w *translations) lead(from netip.AddrPort, to ...netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leads = map[netip.AddrPort][]netip.AddrPort{from: to}
}

// servers returns the Servers of a daemon that starts now.
func (w *translations) servers() *Servers {
	s := NewServers(ServersOptions{
		Leads: func(a netip.AddrPort) []netip.AddrPort {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.leads[a]
		},
		Save: func(e Endpoints) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.saved = Endpoints{}
			for host, addrs := range e {
				w.saved[host] = addrs
			}
			return nil
		},
	})
	s.Recall(w.saved)
	return s
}

// clientOf returns a client whose kubeconfig has this server. With others, the option
// APIServer has all of them.
func clientOf(t *testing.T, s *Servers, ca []byte, server string, others ...string) kubernetes.Interface {
	t.Helper()
	noEnvironment(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca.crt"), string(ca))
	list := ""
	if len(others) > 0 {
		list = server + "," + strings.Join(others, ",")
	}
	client, _, err := NewClient(ClientOptions{Kubeconfig: kubeconfig(t, dir, server), APIServer: list, Servers: s})
	must(t, err)
	return client
}

func itoa(port uint16) string { return strconv.Itoa(int(port)) }

func list(t *testing.T, c kubernetes.Interface) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	_, err := c.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	return err
}

// TestOwnServiceLost dials an address that this node translates: first to the API server,
// then to no endpoint, to a closed port and to a stranger. It does so in the same daemon
// and in a new one.
func TestOwnServiceLost(t *testing.T) {
	server, ca := fakeServer(t)
	endpoint := addrOf(server.Listener)
	w := &translations{}
	service := closedPort(t)
	url := "https://" + service.String()
	w.lead(service, endpoint)
	s := w.servers()
	must(t, list(t, clientOf(t, s, ca, url)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	eventually(t, "the endpoint is remembered", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.saved[service.String()]) == 1
	})
	cancel()
	must(t, <-done)
	for name, to := range map[string][]netip.AddrPort{
		"empty": nil, "closed": {closedPort(t)}, "a stranger": {stranger(t)}, "both": {closedPort(t), stranger(t)},
	} {
		w.lead(service, to...)
		server.CloseClientConnections()
		if err := list(t, clientOf(t, s, ca, url)); err != nil {
			t.Errorf("%s, same daemon: %v", name, err)
		}
		if err := list(t, clientOf(t, w.servers(), ca, url)); err != nil {
			t.Errorf("%s, new daemon: %v", name, err)
		}
		w.lead(service, append(to, endpoint)...)
		for range 4 {
			if err := list(t, clientOf(t, w.servers(), ca, url)); err != nil {
				t.Errorf("%s and the right one: %v", name, err)
			}
		}
	}
	w.saved = nil
	w.lead(service)
	if list(t, clientOf(t, w.servers(), ca, url)) == nil {
		t.Error("reached with nothing that leads there: the test proves nothing")
	}
}

// TestProvenEndpointsAreRemembered: where a name can't be resolved any more, the address
// at which a server answered is dialled.
func TestProvenEndpointsAreRemembered(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	const host = "gone.invalid:443"
	w := &translations{}
	w.servers().wayProven(host, l.Addr().String())
	conn, err := w.servers().DialContext(t.Context(), "tcp", host)
	must(t, err)
	must(t, conn.Close())
}

// TestServersInTurn: of several addresses only the last is that of a server.
func TestServersInTurn(t *testing.T) {
	server, ca := fakeServer(t)
	for name, first := range map[string]netip.AddrPort{"closed": closedPort(t), "a stranger": stranger(t)} {
		s := (&translations{}).servers()
		c := clientOf(t, s, ca, "https://"+first.String(), "https://"+closedPort(t).String(), server.URL)
		if err := list(t, c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if s.server().Host != addrOf(server.Listener).String() {
			t.Errorf("%s: the next request goes to %v", name, s.server())
		}
	}
}

// TestSilentEndpoint: an address whose packets are lost delays the others by dialDelay
// only.
func TestSilentEndpoint(t *testing.T) {
	server, ca := fakeServer(t)
	silent, service := netip.MustParseAddrPort("192.0.2.1:6443"), closedPort(t)
	w := &translations{saved: Endpoints{service.String(): {addrOf(server.Listener)}}}
	w.lead(service, silent)
	s := w.servers()
	real := s.dial
	s.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == silent.String() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return real(ctx, network, address)
	}
	began := time.Now()
	must(t, list(t, clientOf(t, s, ca, "https://"+service.String())))
	if took := time.Since(began); took < dialDelay || took > dialTimeout-time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestHint: where only the kubernetes Service's address is known, there is a hint until a
// server has answered.
func TestHint(t *testing.T) {
	server, ca := fakeServer(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca.crt"), string(ca))
	write(t, filepath.Join(dir, "token"), "secret")
	at := addrOf(server.Listener)
	for _, c := range []struct {
		name, apiServer string
		port            uint16
		want            bool
	}{
		{"only the Service", "", closedPort(t).Port(), true},
		{"the Service is served", "", at.Port(), false},
		{"an address of its own", closedPort(t).String(), closedPort(t).Port(), false},
	} {
		noEnvironment(t)
		t.Setenv(envServiceHost, "127.0.0.1")
		t.Setenv(envServicePort, itoa(c.port))
		s := (&translations{}).servers()
		client, _, err := NewClient(ClientOptions{APIServer: c.apiServer, Servers: s, serviceAccount: dir})
		must(t, err)
		_ = list(t, client) // fails in two of the cases
		hint := s.Hint()
		if (hint != "") != c.want || c.want && !strings.Contains(hint, "127.0.0.1:"+itoa(c.port)+" is the address of the kubernetes Service") {
			t.Errorf("%s: %q", c.name, hint)
		}
	}
}

// TestBodyIsSentAgain: the next server gets the whole body of a request.
func TestBodyIsSentAgain(t *testing.T) {
	noEnvironment(t)
	got := make(chan string, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, r.ContentLength)
		_, _ = r.Body.Read(body)
		got <- r.Method + " " + r.URL.Path + " " + string(body)
		w.WriteHeader(http.StatusForbidden)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { must(t, srv.Close()); wg.Wait() })
	client, _, err := NewClient(ClientOptions{APIServer: "http://" + stranger(t).String() + "/a,http://" + l.Addr().String() + "/b"})
	must(t, err)
	_ = client.CoreV1().RESTClient().Post().AbsPath("/x").Body([]byte("payload")).Do(t.Context()).Error()
	if s := <-got; s != "POST /b/x payload" {
		t.Errorf("the second server got %q", s)
	}
}

// TestRememberedForConfigured: endpoints are remembered for the addresses that are
// configured now, and saved again only if something is new. That is so for a Service with
// more than mostRemembered endpoints too.
func TestRememberedForConfigured(t *testing.T) {
	const host = "192.0.2.1:443"
	var many []netip.AddrPort
	for i := range uint16(2 * mostRemembered) {
		many = append(many, netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), i+1))
	}
	var saved []Endpoints
	s := NewServers(ServersOptions{Save: func(e Endpoints) error {
		saved = append(saved, stdmaps.Clone(e))
		return nil
	}})
	s.setURLs([]*url.URL{{Scheme: "https", Host: host}}, true)
	s.Recall(Endpoints{"192.0.2.2:443": many[:mostRemembered], host: many[:1]})
	if len(s.remembered) != 1 {
		t.Errorf("what an earlier configuration has left is remembered: %v", s.remembered)
	}
	for range 3 {
		s.remember(host, many)
		s.save()
	}
	if len(saved) != 1 || len(saved[0]) != 1 || !slices.Equal(saved[0][host], many[:mostRemembered]) {
		t.Errorf("saved %d times: %v", len(saved), saved)
	}
	s.remember(host, many[mostRemembered:])
	s.save()
	if len(saved) != 2 || !slices.Equal(saved[1][host], many[mostRemembered:]) {
		t.Errorf("with other endpoints: saved %d times: %v", len(saved), saved)
	}
}

// TestForgottenWithoutChange: endpoints of an address that is no longer configured are
// removed from what is saved, even if nothing else changes.
func TestForgottenWithoutChange(t *testing.T) {
	at := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:6443")}
	var saved []Endpoints
	s := NewServers(ServersOptions{Save: func(e Endpoints) error {
		saved = append(saved, stdmaps.Clone(e))
		return nil
	}})
	s.Recall(Endpoints{"192.0.2.1:443": at, "192.0.2.2:443": at})
	s.setURLs([]*url.URL{{Scheme: "https", Host: "192.0.2.1"}}, false)
	s.save()
	s.save()
	if len(saved) != 1 || len(saved[0]) != 1 || saved[0]["192.0.2.1:443"] == nil {
		t.Errorf("saved %d times: %v", len(saved), saved)
	}
}

// TestRememberedFits: as many endpoints are saved as there is room for, evenly for all
// addresses; addresses configured first have priority. With just enough room all are saved.
func TestRememberedFits(t *testing.T) {
	var saved Endpoints
	o := ServersOptions{Save: func(e Endpoints) error { saved = e; return nil }}
	text := func(e Endpoints) int { b, err := json.Marshal(e); must(t, err); return len(b) }
	saveIn := func(room int) *Servers {
		o.Room = room
		s := NewServers(o)
		var urls []*url.URL
		for i := range 12 {
			urls = append(urls, &url.URL{Scheme: "https", Host: fmt.Sprintf("[2001:db8:1:2:3:4:5:%x]:6443", 0x1000+i)})
		}
		s.setURLs(urls, false)
		for i, u := range urls {
			var at []netip.AddrPort
			for j := range mostRemembered {
				at = append(at, netip.MustParseAddrPort(fmt.Sprintf("[2001:db8:ffff:2:3:4:%x:%x]:6443", 0x1000+i, 0x1000+j)))
			}
			s.remember(hostPort(u), at)
		}
		s.save()
		return s
	}
	all := text(saveIn(0).remembered)
	if saveIn(all); text(saved) != all {
		t.Errorf("with room for all %d bytes, %d are saved", all, text(saved))
	}
	const room = 3584 // of map memory
	if all <= room {
		t.Fatalf("%d bytes are no test", all)
	}
	for _, n := range []int{all - 1, room, 12 * 60, 700, 100, 10} {
		s := saveIn(n)
		if text(saved) > n {
			t.Errorf("with room for %d bytes, %d are saved", n, text(saved))
		}
		before := mostRemembered
		for i, u := range s.urls {
			host := hostPort(u)
			got := saved[host]
			if !slices.Equal(got, s.remembered[host][:len(got)]) || len(got) > before || len(got) < len(saved[hostPort(s.urls[0])])-1 {
				t.Errorf("with room for %d bytes: of address %d there are %d of %d", n, i, len(got), len(s.remembered[host]))
			}
			before = len(got)
		}
		if n == room && text(saved) < n-100 {
			t.Errorf("with room for %d bytes, only %d are used", n, text(saved))
		}
	}
	if saved == nil || len(saved) != 0 {
		t.Errorf("with no room %v is saved", saved)
	}
}
