// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// dialDelay is the delay after which the next address is dialled in parallel with a pending
// attempt: an address whose packets are lost must not delay the others.
const dialDelay = 500 * time.Millisecond

// dialer returns the dialer of one address. TCP keepalive ends a connection to a server
// that has vanished within 25 s.
func (s *Servers) dialer() *net.Dialer {
	d := &net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
	if s.o.Control != nil {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) { err = s.o.Control(fd) }), err)
		}
	}
	return d
}

// DialContext connects to a server, given as HOST:PORT. It dials the server's addresses in
// the order of ways: the next address after dialDelay, or at once after a failure. It
// returns the first connection that is established.
func (s *Servers) DialContext(ctx context.Context, network, host string) (net.Conn, error) {
	ways := s.ways(ctx, host)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan attempt, len(ways))
	var last *attempt
	started, ended := 0, 0
	for last == nil && ended < len(ways) {
		if started < len(ways) {
			address := ways[started]
			started++
			go func() { // owned: its result is received below
				conn, err := s.dial(ctx, network, address)
				results <- attempt{address, conn, err}
			}()
		}
		var next <-chan time.Time
		if started < len(ways) {
			next = time.After(dialDelay)
		}
		select {
		case <-next:
		case a := <-results:
			ended++
			if a.err == nil {
				last = &a
			} else {
				s.wayFailed(a.address, time.Now())
			}
			if last == nil && ended == len(ways) {
				return nil, &unreachable{ways: len(ways), err: a.err}
			}
		}
	}
	cancel()
	for ; ended < started; ended++ { // cancelled: the other attempts end at once
		if a := <-results; a.err == nil {
			_ = a.conn.Close()
		}
	}
	return &serverConn{Conn: last.conn, servers: s, host: host, address: last.address, dialled: time.Now()}, nil
}

// attempt is the outcome of dialling one address.
type attempt struct {
	address string
	conn    net.Conn
	err     error
}

// unreachable is the error for a server all of whose addresses fail to connect.
type unreachable struct {
	ways int
	err  error // of the last attempt
}

func (u *unreachable) Error() string {
	if u.ways == 1 {
		return u.err.Error()
	}
	return fmt.Sprintf("none of %d known addresses takes a connection, the last: %v", u.ways, u.err)
}

func (u *unreachable) Unwrap() error { return u.err }

// serverConn is a connection that is proven once an API server has answered a request on it.
// An established connection alone is no proof: another program may listen at the address now.
type serverConn struct {
	net.Conn
	servers       *Servers
	host, address string
	dialled       time.Time
	proven        atomic.Bool
}

// Close closes the connection. It records a failure of the address if no API server has
// answered on the connection.
func (c *serverConn) Close() error {
	if !c.proven.Load() {
		c.servers.wayFailed(c.address, c.dialled)
	}
	return c.Conn.Close()
}

func (c *serverConn) prove() {
	if !c.proven.Swap(true) {
		c.servers.wayProven(c.host, c.address)
	}
}

// failover sends a request to the current server and, if that server does not answer, to
// each of the other servers. A server that has several addresses, of which one accepts
// connections, is tried three times.
type failover struct {
	next    http.RoundTripper
	servers *Servers
}

// WrappedRoundTripper returns the wrapped transport. client-go unwraps transports by this method.
func (f failover) WrappedRoundTripper() http.RoundTripper { return f.next }

func (f failover) RoundTrip(r *http.Request) (*http.Response, error) {
	count := f.servers.count()
	for servers, tries := 1, 1; ; tries++ {
		server := f.servers.server()
		resp, err := f.once(r, server)
		if err == nil || r.Context().Err() != nil || !rewind(r) {
			return resp, err
		}
		var none *unreachable
		if !errors.As(err, &none) && len(f.servers.ways(r.Context(), hostPort(server))) > 1 && tries%3 != 0 {
			continue
		}
		f.servers.serverFailed(server)
		if servers++; servers > count {
			return nil, err
		}
		tries = 0
	}
}

// rewind resets the body of a request for another attempt, and reports whether that succeeded.
func rewind(r *http.Request) bool {
	if r.Body == nil || r.Body == http.NoBody {
		return true
	}
	if r.GetBody == nil {
		return false
	}
	body, err := r.GetBody()
	r.Body = body
	return err == nil
}

// once sends a request to one server, and marks the connection as proven if there is a response.
func (f failover) once(r *http.Request, server *url.URL) (*http.Response, error) {
	var conn net.Conn
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { conn = info.Conn }})
	out := r.Clone(ctx)
	out.URL.Scheme, out.URL.Host, out.Host = server.Scheme, server.Host, ""
	if first := f.servers.first(); first.Path != server.Path { // the API may be below a path
		out.URL.Path = server.Path + strings.TrimPrefix(out.URL.Path, first.Path)
		out.URL.RawPath = ""
	}
	resp, err := f.next.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if c, ok := conn.(*serverConn); ok {
		c.prove()
	}
	return resp, nil
}
