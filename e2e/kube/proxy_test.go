// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestProxyCutsRefusesAndAccepts(t *testing.T) {
	t.Parallel()
	p := newTestProxy(t, "", "127.0.0.1:0", echoServer(t))
	conn := dial(t, p)
	expectEcho(t, conn)

	p.Cut()
	expectReset(t, conn)
	conn = dial(t, p)
	expectEcho(t, conn) // new connections are accepted

	p.Refuse()
	expectReset(t, conn)
	if _, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want a refusal", err)
	}
	p.Refuse() // a second Refuse is harmless, and so is a second Accept
	for range 2 {
		if err := p.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	expectEcho(t, dial(t, p))

	p.Close()
	if err := p.Accept(); err == nil {
		t.Error("a closed proxy can be opened again")
	}
}

func TestProxyWithoutUpstreamResets(t *testing.T) {
	t.Parallel()
	const upstream = "127.0.0.3:1" // no server listens on tcpmux here
	p := newTestProxy(t, "", "127.0.0.1:0", upstream)
	conn, err := net.Dial("tcp", p.Addr())
	if errors.Is(err, syscall.ECONNRESET) {
		return // the reset was faster than the dial
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	expectReset(t, conn)
}

// TestProxyListensInANetworkNamespace: the proxy's namespace shares nothing with that of
// its upstream: only the proxy connects them.
func TestProxyListensInANetworkNamespace(t *testing.T) {
	t.Parallel()
	upstream := echoServer(t)
	netns, dialThere := newNetns(t)
	p := newTestProxy(t, netns, "127.0.0.1:0", upstream)
	if _, err := dialThere(upstream); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("dial the upstream from the namespace: %v, want a refusal", err)
	}
	if _, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("dial the proxy from outside its namespace: %v, want a refusal", err)
	}
	conn, err := dialThere(p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	expectEcho(t, conn)
}

func newTestProxy(t *testing.T, netns, address, upstream string) *Proxy {
	t.Helper()
	p, err := NewProxy(netns, address, upstream)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// newNetns makes a network namespace with its loopback up, which lives as long as the test.
// It returns its path and a function that dials in it.
func newNetns(t *testing.T) (path string, dialThere func(string) (net.Conn, error)) {
	t.Helper()
	addresses := make(chan string)
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			started <- fmt.Errorf("make a network namespace (this needs root): %w", err)
			return
		}
		path = fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		started <- exec.Command("ip", "link", "set", "lo", "up").Run()
		for address := range addresses {
			conn, err := net.Dial("tcp", address)
			results <- result{conn, err}
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(addresses) })
	return path, func(address string) (net.Conn, error) {
		addresses <- address
		r := <-results
		if r.err == nil {
			t.Cleanup(func() { _ = r.conn.Close() })
		}
		return r.conn, r.err
	}
}

// echoServer returns the address of a server that echoes what it receives.
func echoServer(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return listener.Addr().String()
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func expectEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 5)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "hello" {
		t.Fatalf("the answer is %q (%v)", answer, err)
	}
}

func expectReset(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
}
