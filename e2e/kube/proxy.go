// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of a cluster: below the kernel's range for outgoing connections, so that
// the port is still free when a killed server comes back to it, and below the node
// ports.
const (
	firstPort = 21000
	lastPort  = 29999
)

// Proxy forwards TCP connections to one address, cuts them and refuses new ones on request.
// It does not read their content.
type Proxy struct {
	netns    string
	address  string // host:port on which it listens
	upstream string // host:port to which it forwards connections

	ctx    context.Context // ends dials when the proxy is closed
	cancel context.CancelFunc
	wg     sync.WaitGroup // all goroutines

	mu       sync.Mutex
	closed   bool
	listener net.Listener          // nil while connections are refused
	conns    map[net.Conn]struct{} // both sides of all connections
}

// NewProxy listens on address (host:port, port 0 for a free one) in a network namespace, given by
// its path or "" for the current one. It forwards connections to upstream (host:port), which it
// dials from the current namespace. Close ends it.
func NewProxy(netns, address, upstream string) (*Proxy, error) {
	p := &Proxy{netns: netns, address: address, upstream: upstream, conns: map[net.Conn]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if err := p.Accept(); err != nil {
		p.cancel()
		return nil, err
	}
	return p, nil
}

// newClusterProxy picks a port that is free both for the proxy at address and for the API
// server behind it.
func newClusterProxy(netns, address string) (*Proxy, error) {
	var last error
	for range 50 {
		port := strconv.Itoa(firstPort + rand.IntN(lastPort-firstPort+1))
		backend := net.JoinHostPort(backendAddress, port)
		probe, err := net.Listen("tcp", backend)
		if err != nil {
			last = err
			continue
		}
		if err := probe.Close(); err != nil {
			return nil, err
		}
		p, err := NewProxy(netns, net.JoinHostPort(address, port), backend)
		if err == nil {
			return p, nil
		}
		last = err
	}
	return nil, fmt.Errorf("found no port between %d and %d for the API server: %w", firstPort, lastPort, last)
}

// Addr returns the host:port on which the proxy listens.
func (p *Proxy) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.address
}

// Accept accepts connections again after Refuse. Otherwise it does nothing.
func (p *Proxy) Accept() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("accept connections at %s: the proxy was closed", p.address)
	}
	if p.listener != nil {
		return nil
	}
	listener, err := listenIn(p.netns, p.address)
	if err != nil {
		return err
	}
	p.listener, p.address = listener, listener.Addr().String()
	p.wg.Go(func() { p.serve(listener) })
	return nil
}

// Cut ends all connections at once, with a TCP reset to both sides.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	// First mark all of them, then close: as one side closes, pass closes the other, which
	// must be marked by then.
	for conn := range p.conns {
		resetOnClose(conn)
	}
	for conn := range p.conns {
		_ = conn.Close()
	}
	clear(p.conns)
}

// Refuse does what Cut does, and refuses new connections with a reset (ECONNREFUSED) until
// Accept.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	if p.listener != nil {
		stopListening(p.listener)
		p.listener = nil
	}
	p.mu.Unlock()
	p.Cut()
}

// Close ends the proxy, its connections and its goroutines.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.Refuse()
	p.wg.Wait()
}

func (p *Proxy) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Shut down and about to be closed, or out of file descriptors: Accept would
			// fail again at once.
			select {
			case <-p.ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		if p.track(listener, conn) {
			p.wg.Go(func() { p.pass(conn) })
		}
	}
}

// track records a new connection, or resets it if its listener was closed meanwhile.
func (p *Proxy) track(listener net.Listener, conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != listener {
		reset(conn)
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

// join adds the far side of a connection, unless the connection was cut meanwhile.
func (p *Proxy) join(near, far net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.conns[near]; ok {
		p.conns[far] = struct{}{}
		return true
	}
	return false
}

func (p *Proxy) forget(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range conns {
		delete(p.conns, conn)
	}
}

// pass copies in both directions until either side ends.
func (p *Proxy) pass(near net.Conn) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	far, err := dialer.DialContext(p.ctx, "tcp", p.upstream)
	if err != nil {
		reset(near) // the closest to a refusal after the handshake
		p.forget(near)
		return
	}
	if !p.join(near, far) {
		reset(far)
		return
	}
	defer p.forget(near, far)
	var copies sync.WaitGroup
	for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
		copies.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_ = near.Close()
			_ = far.Close()
		})
	}
	copies.Wait()
}

// stopListening closes a listener so that the port refuses at once. Closing is not enough:
// a child process that is being forked holds the socket until its exec.
func stopListening(listener net.Listener) {
	if tcp, ok := listener.(*net.TCPListener); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
		}
	}
	_ = listener.Close()
}

func reset(conn net.Conn) {
	resetOnClose(conn)
	_ = conn.Close()
}

func resetOnClose(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
}

// listenIn listens in a network namespace. The socket stays there, whatever thread uses it
// later.
func listenIn(netns, address string) (net.Listener, error) {
	if netns == "" {
		return net.Listen("tcp", address)
	}
	type result struct {
		listener net.Listener
		err      error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread, which is in another namespace, ends with the
		// goroutine.
		runtime.LockOSThread()
		listener, err := func() (net.Listener, error) {
			f, err := os.Open(netns)
			if err != nil {
				return nil, err
			}
			defer func() { _ = f.Close() }()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, fmt.Errorf("enter the network namespace %s: %w", netns, err)
			}
			return net.Listen("tcp", address)
		}()
		done <- result{listener, err}
	}()
	r := <-done
	return r.listener, r.err
}
