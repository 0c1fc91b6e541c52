// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// grace bounds the wait for responses that are being written when a server is closed.
// Closing takes less than a second in total.
const grace = 700 * time.Millisecond

// maxHeader bounds the header of a request, in bytes. No probe sends a header of that size.
const maxHeader = 16 << 10

// backoff is the wait between attempts to bind an address: it doubles from min to max. The
// kernel does not report when a port becomes free, and a load balancer or a probe waits for
// the server: max is one second. An attempt costs microseconds.
type backoff struct {
	min, max time.Duration
}

var bindBackoff = backoff{min: 250 * time.Millisecond, max: time.Second}

// sayAgain is the time after which a lasting failure to bind is logged again.
const sayAgain = time.Minute

// after returns the wait after a number of failures, which must be at least one.
func (b backoff) after(failures int) time.Duration {
	d := b.min
	for i := 1; i < failures && d < b.max; i++ {
		d *= 2
	}
	return min(d, b.max)
}

// listen binds a TCP address. A wildcard of either family binds both families, where the
// node has both: net.Listen does so for "tcp".
func listen(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", addr.String())
}

// listenFamily binds a TCP address in its own family only, even if it is a wildcard:
// the wildcards of IPv4 and IPv6 are two sockets.
func listenFamily(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	network := "tcp4"
	if addr.Addr().Is6() {
		network = "tcp6"
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, network, addr.String())
}

// bindHint returns what to do about a failed bind. flag is the option that sets the
// address.
func bindHint(err error, flag string) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "another process has that port: end it (is kube-proxy still running?) or choose another by " + flag
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "this node has no such address: give one of its own by " + flag
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return "a port below 1024 needs CAP_NET_BIND_SERVICE: choose another by " + flag
	}
	return "choose another address by " + flag
}

// serve serves h on l until ctx is done. It then closes l at once, waits up to grace for
// responses that are being written, and returns nil. It returns an error if l fails before.
// net/http writes its messages, such as those about broken connections, to log at debug level.
func serve(ctx context.Context, l net.Listener, h http.Handler, log *zap.Logger) error {
	complaints, err := zap.NewStdLogAt(log, zap.DebugLevel)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:  h,
		ErrorLog: complaints,
		// The handlers get any path and method, "OPTIONS *" too.
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  10 * time.Second,
		IdleTimeout:                  90 * time.Second,
		MaxHeaderBytes:               maxHeader,
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		if ctx.Err() == nil {
			_ = srv.Close()
			return fmt.Errorf("accept connections: %w", err)
		}
		failed <- err // the caller closed l
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if srv.Shutdown(limit) != nil {
		_ = srv.Close()
	}
	<-failed // waits until Serve has returned
	return nil
}

// site is a server with an address of its own.
type site struct {
	// name is for the log, flag sets addr.
	name, flag string
	addr       netip.AddrPort
	handler    http.Handler
	log        *zap.Logger

	mu sync.Mutex
	at netip.AddrPort
}

// bound returns the address on which the site listens, the zero value while it does not.
func (s *site) bound() netip.AddrPort {
	if s == nil {
		return netip.AddrPort{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

func (s *site) setBound(at netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = at
}

// run binds and serves until ctx is done. After a failure it retries with backoff, or
// returns the error if hardFail is set.
func (s *site) run(ctx context.Context, hardFail bool) error {
	var said time.Time
	for failures := 0; ; {
		err := s.once(ctx, func() { failures, said = 0, time.Time{} })
		if ctx.Err() != nil {
			return nil
		}
		if hardFail {
			return err
		}
		failures++
		wait := bindBackoff.after(failures)
		if time.Since(said) >= sayAgain {
			s.log.Error("cannot serve "+s.name+", everything else goes on", zap.Error(err), zap.Duration("retry_every", bindBackoff.max))
			said = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// once binds, calls served, and serves until ctx is done or the socket fails.
func (s *site) once(ctx context.Context, served func()) error {
	l, err := listen(ctx, s.addr)
	if err != nil {
		return fmt.Errorf("serve %s on %s: %w; %s", s.name, s.addr, err, bindHint(err, s.flag))
	}
	at := s.addr
	if tcp, ok := l.Addr().(*net.TCPAddr); ok {
		// The configured address, with the port that the kernel chose for 0: the
		// address of a dual-stack socket is [::], whatever it was bound to.
		at = netip.AddrPortFrom(s.addr.Addr(), tcp.AddrPort().Port())
	}
	s.setBound(at)
	defer s.setBound(netip.AddrPort{})
	served()
	s.log.Info("serving "+s.name, zap.Stringer("address", at))
	if err := serve(ctx, l, s.handler, s.log); err != nil {
		return fmt.Errorf("serve %s on %s: %w", s.name, at, err)
	}
	return nil
}
