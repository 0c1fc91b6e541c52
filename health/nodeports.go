// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"shunt/lb"
)

// nodePorts serves the healthCheckNodePort of every Service that has one: a cloud's load
// balancer probes this port to find out whether the node has a local endpoint. Only the
// goroutine of run opens and closes sockets; the setters store what run must serve.
type nodePorts struct {
	checker  *checker
	log      *zap.Logger
	failed   func(lb.ServiceName, uint16, error)
	backoff  backoff
	listen   func(context.Context, netip.AddrPort) (net.Listener, error)
	selected bool

	// changed contains a token after wanted or addrs was replaced.
	changed chan struct{}
	// broken receives each socket that has failed.
	broken chan *checkSocket

	mu     sync.Mutex
	wanted []lb.HealthCheck
	addrs  []netip.Addr
}

// noFamilyRetry is the wait before a socket of an IP family that the node does not have is
// tried again.
const noFamilyRetry = time.Minute

// checkKey identifies a socket: another port or address of a service is another socket.
type checkKey struct {
	service lb.ServiceName
	at      netip.AddrPort
}

// checkSocket is a socket that is wanted: open, or waiting for its next attempt.
type checkSocket struct {
	key checkKey
	// endpoints is the number of local endpoints in the handler's answer. It changes while
	// the socket serves.
	endpoints atomic.Int64
	// listener is nil while the socket is not open.
	listener net.Listener
	stop     context.CancelFunc
	// failures counts consecutive failures; retryAt is when the next attempt is due.
	failures int
	retryAt  time.Time
}

func newNodePorts(c *checker, opts Options) *nodePorts {
	n := &nodePorts{
		checker:  c,
		log:      opts.Log,
		failed:   opts.BindFailed,
		backoff:  bindBackoff,
		listen:   listenFamily,
		selected: opts.SelectAddresses,
		changed:  make(chan struct{}, 1),
		broken:   make(chan *checkSocket),
	}
	if n.failed == nil {
		n.failed = func(lb.ServiceName, uint16, error) {}
	}
	if !n.selected {
		n.addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	return n
}

func (n *nodePorts) setChecks(checks []lb.HealthCheck) {
	n.mu.Lock()
	n.wanted = slices.Clone(checks)
	n.mu.Unlock()
	n.poke()
}

func (n *nodePorts) setAddresses(addrs []netip.Addr) {
	if !n.selected {
		return
	}
	// A wildcard is left out: a socket bound to it would accept connections to every address.
	addrs = slices.DeleteFunc(slices.Clone(addrs), netip.Addr.IsUnspecified)
	slices.SortFunc(addrs, netip.Addr.Compare)
	n.mu.Lock()
	n.addrs = slices.Compact(addrs)
	n.mu.Unlock()
	n.poke()
}

func (n *nodePorts) poke() {
	select {
	case n.changed <- struct{}{}:
	default: // the token in the channel covers this change too
	}
}

// run owns the sockets until ctx is done. When it returns, all sockets are closed and
// their goroutines have ended.
func (n *nodePorts) run(ctx context.Context) {
	sockets := map[checkKey]*checkSocket{}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		n.apply(ctx, &wg, sockets)
		retry, stop := n.nextRetry(sockets)
		select {
		case <-ctx.Done():
		case <-n.changed:
		case <-retry:
		case s := <-n.broken:
			n.giveUp(s, sockets)
		}
		stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// apply closes the sockets that are no longer wanted, sets the new number of endpoints in
// open ones, and opens those that are wanted and due. It closes first: a port may move
// from one service to another.
func (n *nodePorts) apply(ctx context.Context, wg *sync.WaitGroup, sockets map[checkKey]*checkSocket) {
	wanted := n.snapshot()
	keep := make(map[checkKey]bool, len(wanted))
	for _, w := range wanted {
		keep[w.key] = true
	}
	for key, s := range sockets {
		if !keep[key] {
			s.close()
			delete(sockets, key)
		}
	}
	for _, w := range wanted {
		s := sockets[w.key]
		if s == nil {
			s = &checkSocket{key: w.key}
			sockets[w.key] = s
		}
		s.endpoints.Store(int64(w.endpoints))
		if s.listener == nil && !s.retryAt.After(time.Now()) {
			n.open(ctx, wg, s)
		}
	}
}

// wantedSocket is a socket that should be open, and the endpoints in its answer.
type wantedSocket struct {
	key       checkKey
	endpoints int
}

// snapshot returns the wanted sockets: one for each check and each address of the check's
// family. They are in the order of the checks, so that of two Services with the same port
// the same Service gets the port after every start.
func (n *nodePorts) snapshot() []wantedSocket {
	n.mu.Lock()
	defer n.mu.Unlock()
	wanted := make([]wantedSocket, 0, len(n.wanted)*len(n.addrs))
	for _, check := range n.wanted {
		for _, addr := range n.addrs {
			if lb.FamilyOf(addr) != check.Family {
				continue
			}
			key := checkKey{check.Service, netip.AddrPortFrom(addr, check.Port)}
			wanted = append(wanted, wantedSocket{key, check.LocalEndpoints})
		}
	}
	return wanted
}

// open binds a socket and serves it. If the bind fails, it sets the time of the next attempt.
func (n *nodePorts) open(ctx context.Context, wg *sync.WaitGroup, s *checkSocket) {
	l, err := n.listen(ctx, s.key.at)
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		s.retryAt = time.Now().Add(noFamilyRetry) // the node does not have that family: no probe can arrive
		return
	}
	if err != nil {
		n.putOff(s, fmt.Errorf("serve healthCheckNodePort %d of service %s on %s: %w; %s", s.key.at.Port(),
			s.key.service, s.key.at.Addr(), err, bindHint(err, "the service's spec.healthCheckNodePort")))
		return
	}
	if s.failures > 0 {
		n.log.Info("healthCheckNodePort is served now", zap.Stringer("service", s.key.service),
			zap.Stringer("address", s.key.at))
	}
	s.failures, s.retryAt = 0, time.Time{}
	var served context.Context
	served, s.stop = context.WithCancel(ctx)
	s.listener = l
	wg.Go(func() {
		err := serve(served, l, n.handler(s), n.log)
		if err == nil {
			return
		}
		n.log.Error("healthCheckNodePort lost its socket", zap.Stringer("service", s.key.service), zap.Error(err))
		select {
		case n.broken <- s:
		case <-served.Done():
		}
	})
}

// giveUp closes a broken socket, so that apply opens it again.
func (n *nodePorts) giveUp(s *checkSocket, sockets map[checkKey]*checkSocket) {
	if sockets[s.key] != s {
		return
	}
	s.close()
	n.putOff(s, fmt.Errorf("serve healthCheckNodePort %d of service %s on %s: its socket failed; it will be opened again",
		s.key.at.Port(), s.key.service, s.key.at.Addr()))
}

// putOff records a failure and sets the time of the next attempt. It logs and reports only the
// first of consecutive failures.
func (n *nodePorts) putOff(s *checkSocket, err error) {
	s.failures++
	wait := n.backoff.after(s.failures)
	s.retryAt = time.Now().Add(wait)
	if s.failures > 1 {
		return
	}
	n.log.Warn("cannot serve a healthCheckNodePort", zap.Error(err), zap.Duration("retry_in", wait))
	n.failed(s.key.service, s.key.at.Port(), err)
}

// close frees the port at once. The goroutine that serves the socket ends within grace.
func (s *checkSocket) close() {
	if s.listener == nil {
		return
	}
	s.stop()
	_ = s.listener.Close()
	s.listener = nil
}

// nextRetry returns a channel that receives when the next attempt is due (nil if all sockets
// are open), and a function that stops its timer.
func (n *nodePorts) nextRetry(sockets map[checkKey]*checkSocket) (<-chan time.Time, func()) {
	var next time.Time
	for _, s := range sockets {
		if s.listener == nil && (next.IsZero() || s.retryAt.Before(next)) {
			next = s.retryAt
		}
	}
	if next.IsZero() {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(next))
	return timer.C, func() { timer.Stop() }
}

// checkAnswer is the body of an answer, in kube-proxy's form.
type checkAnswer struct {
	Service             checkService `json:"service"`
	LocalEndpoints      int64        `json:"localEndpoints"`
	ServiceProxyHealthy bool         `json:"serviceProxyHealthy"`
}

type checkService struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// handler answers any path and method. It ignores the state of the Node: while a node is
// drained, its endpoints are removed one by one, and their number is in the answer.
func (n *nodePorts) handler(s *checkSocket) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		endpoints, healthy := s.endpoints.Load(), n.checker.serving()
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.FormatInt(endpoints, 10))
		writeJSON(w, code(endpoints > 0 && healthy), checkAnswer{
			Service:             checkService{s.key.service.Namespace, s.key.service.Name},
			LocalEndpoints:      endpoints,
			ServiceProxyHealthy: healthy,
		})
	}
}
