// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// target is a destination, with all data that can be prepared before the measurement. Its
// methods only make blocking system calls, and allocate nothing.
type target struct {
	domain, kind int
	sa, bind     unix.Sockaddr // bind is nil where the kernel chooses
	timeout      time.Duration
	unconnected  bool
	// abort closes TCP connections by a RST: thousands of them would otherwise occupy their
	// ports for a minute (TIME_WAIT).
	abort bool
	// share allows other sockets the same source port, over UDP too.
	share   bool
	request []byte
	token   []byte // request without its newline
}

func newTarget(args requestArgs) (*target, error) {
	domain, kind, err := socketKind(args.Network, args.Dst.Addr())
	if err != nil {
		return nil, err
	}
	o := args.Options
	if o.Timeout <= 0 {
		o.Timeout = requestTimeout
	}
	random := make([]byte, 8)
	rand.Read(random) // never fails: see crypto/rand
	t := &target{
		domain: domain, kind: kind, timeout: o.Timeout,
		unconnected: o.Unconnected && kind == unix.SOCK_DGRAM,
		token:       []byte(hex.EncodeToString(random)),
	}
	t.request = append(bytes.Clone(t.token), '\n')
	if t.sa, err = toSockaddr(domain, args.Dst); err != nil {
		return nil, err
	}
	if o.Local.IsValid() {
		t.bind, err = toSockaddr(domain, o.Local)
	}
	return t, err
}

// open opens a socket that is ready to connect. On failure, op is the system call that failed.
func (t *target) open() (fd int, op string, err error) {
	if fd, err = unix.Socket(t.domain, t.kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, "socket", err
	}
	if op, err = t.setUp(fd); err != nil {
		unix.Close(fd)
		return -1, op, err
	}
	return fd, "", nil
}

func (t *target) setUp(fd int) (op string, err error) {
	if err := setTimeouts(fd, t.timeout); err != nil {
		return "setsockopt", err
	}
	if t.domain == unix.AF_INET6 { // v4-mapped addresses must work
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return "setsockopt", err
		}
	}
	if t.abort && t.kind == unix.SOCK_STREAM {
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &abortOnClose); err != nil {
			return "setsockopt", err
		}
	}
	if t.bind == nil {
		return "", nil
	}
	if t.kind == unix.SOCK_STREAM || t.share { // a fixed port is used again and again
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return "setsockopt", err
		}
	}
	return "bind", unix.Bind(fd, t.bind)
}

var abortOnClose = unix.Linger{Onoff: 1, Linger: 0}

func (t *target) connect(fd int) error {
	if t.unconnected {
		return nil
	}
	return connectTo(fd, t.sa, t.timeout)
}

// send sends the request.
func (t *target) send(fd int) error {
	for {
		var err error
		if t.unconnected {
			err = unix.Sendto(fd, t.request, 0, t.sa)
		} else {
			_, err = unix.Write(fd, t.request)
		}
		if err != unix.EINTR {
			return timedOut(err)
		}
	}
}

// receive reads one answer: up to a newline over TCP, one datagram over UDP.
func (t *target) receive(fd int, buf []byte) (n int, err error) {
	for n < len(buf) {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, timedOut(err)
		}
		n += m
		if t.kind == unix.SOCK_DGRAM {
			return n, nil
		}
		if m == 0 {
			return n, unix.ECONNRESET // closed in the middle of an answer
		}
		if buf[n-1] == '\n' {
			return n, nil
		}
	}
	return n, unix.EMSGSIZE
}

// parseAnswer splits an answer into its words without copying them.
func parseAnswer(line []byte) (words [4][]byte, ok bool) {
	line = bytes.TrimSuffix(line, []byte{'\n'})
	for i := range words {
		words[i], line, ok = bytes.Cut(line, []byte{' '})
		if ok != (i < len(words)-1) {
			return words, false
		}
	}
	return words, len(words[1]) > 0
}

func (a *agent) request(_ context.Context, args requestArgs) (requestReply, error) {
	t, err := newTarget(args)
	if err != nil {
		return requestReply{}, err
	}
	fd, op, err := t.open()
	if err != nil {
		return requestReply{Err: failure(op, err)}, nil
	}
	defer unix.Close(fd)
	var reply requestReply
	reply.Err = t.converse(fd, &reply.Answer)
	return reply, nil
}

// converse makes one exchange and fills in the answer.
func (t *target) converse(fd int, a *Answer) *Error {
	start := time.Now()
	defer func() { a.Total = time.Since(start) }()
	err := t.connect(fd)
	a.Connect = time.Since(start)
	if err != nil {
		return failure("connect", err)
	}
	defer func() {
		if sa, err := unix.Getsockname(fd); err == nil {
			a.Local = fromSockaddr(sa)
		}
		if sa, err := unix.Getpeername(fd); err == nil {
			a.Peer = fromSockaddr(sa)
		}
	}()
	if err := t.send(fd); err != nil {
		return failure("send", err)
	}
	return t.hear(fd, a)
}

// hear waits for the answer with the token. It skips datagrams for an earlier socket with the
// same port.
func (t *target) hear(fd int, a *Answer) *Error {
	buf := make([]byte, maxLine)
	deadline := time.Now().Add(t.timeout)
	for time.Now().Before(deadline) {
		var n int
		var from unix.Sockaddr
		var err error
		if t.kind == unix.SOCK_STREAM {
			n, err = t.receive(fd, buf)
		} else if n, from, err = unix.Recvfrom(fd, buf, 0); errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return failure("recv", timedOut(err))
		}
		words, ok := parseAnswer(buf[:n])
		if !ok {
			return &Error{Op: "recv", Detail: "not an answer of a lab server: " + string(buf[:min(n, 80)])}
		}
		if !bytes.Equal(words[0], t.token) {
			continue
		}
		a.Server, a.From = string(words[1]), fromSockaddr(from)
		a.ClientSeen, _ = netip.ParseAddrPort(string(words[2]))
		a.ServedAt, _ = netip.ParseAddrPort(string(words[3]))
		return nil
	}
	return failure("recv", unix.ETIMEDOUT)
}

func (a *agent) netnsCookie(context.Context, none) (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, failure("socket", err)
	}
	defer unix.Close(fd)
	cookie, err := netnsCookie(fd)
	return cookie, failureOrNil("getsockopt SO_NETNS_COOKIE", err)
}
