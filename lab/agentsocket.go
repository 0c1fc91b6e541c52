// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is the agent's end of a Socket.
type socket struct {
	mu     sync.RWMutex // write-locked to close, so that no call uses a descriptor that was reused
	fd     int
	domain int
	closed bool
}

func (a *agent) socketOpen(_ context.Context, network string) (uint64, error) {
	t := target{timeout: requestTimeout}
	var err error
	if t.domain, t.kind, err = socketKind(network, anyAddr(network, 0).Addr()); err != nil {
		return 0, err
	}
	fd, op, err := t.open()
	if err != nil {
		return 0, failure(op, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.nextHandle()
	a.sockets[h] = &socket{fd: fd, domain: t.domain}
	return h, nil
}

func (a *agent) findSocket(h uint64) (*socket, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.sockets[h]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("no socket %d, or it was closed", h)
}

func (a *agent) socketClose(_ context.Context, args handleArgs) (none, error) {
	s, err := a.findSocket(args.Handle)
	if err != nil {
		return none{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return none{}, nil
	}
	s.closed = true
	a.mu.Lock()
	delete(a.sockets, args.Handle)
	a.mu.Unlock()
	return none{}, failureOrNil("close", unix.Close(s.fd))
}

func (a *agent) socketCookie(_ context.Context, args handleArgs) (uint64, error) {
	s, err := a.findSocket(args.Handle)
	if err != nil {
		return 0, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	cookie, err := unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return cookie, failureOrNil("getsockopt SO_COOKIE", err)
}

func (a *agent) socketCall(_ context.Context, args socketCallArgs) (socketReply, error) {
	s, err := a.findSocket(args.Handle)
	if err != nil {
		return socketReply{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return socketReply{}, &Error{Op: args.Call, Errno: unix.EBADF}
	}
	var r socketReply
	switch args.Call {
	case "bind", "connect", "sendto":
		err = s.withAddr(args)
	case "disconnect":
		err = disconnect(s.fd)
	case "send":
		err = s.send(func() error { _, err := unix.Write(s.fd, args.Data); return err })
	case "recv":
		r, err = s.recv(args)
	case "getpeername", "getsockname":
		r, err = s.names(args.Call)
	case "getsockerror":
		var n int
		n, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		r.Errno = unix.Errno(n)
	case "poll":
		r.Events, err = pollFor(s.fd, args.Events, args.Timeout)
	default:
		err = fmt.Errorf("no such call")
	}
	return r, failureOrNil(args.Call, err)
}

func (s *socket) withAddr(args socketCallArgs) error {
	sa, err := toSockaddr(s.domain, args.Addr)
	if err != nil {
		return err
	}
	switch args.Call {
	case "bind":
		return unix.Bind(s.fd, sa)
	case "connect":
		return connectTo(s.fd, sa, args.Timeout)
	}
	return s.send(func() error { return unix.Sendto(s.fd, args.Data, 0, sa) })
}

// disconnect calls connect(2) with a sockaddr of AF_UNSPEC, for which package unix has no
// type.
func disconnect(fd int) error {
	none := [unix.SizeofSockaddrInet4]byte{}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none[0])), uintptr(len(none)))
	if errno != 0 {
		return errno
	}
	return nil
}

func (s *socket) send(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return timedOut(err)
		}
	}
}

func (s *socket) recv(args socketCallArgs) (r socketReply, err error) {
	if err := setTimeouts(s.fd, args.Timeout); err != nil {
		return r, err
	}
	buf := make([]byte, maxLine)
	for {
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return r, timedOut(err)
		}
		return socketReply{Data: buf[:n], Addr: fromSockaddr(from)}, nil
	}
}

func (s *socket) names(call string) (r socketReply, err error) {
	var sa unix.Sockaddr
	if call == "getpeername" {
		sa, err = unix.Getpeername(s.fd)
	} else {
		sa, err = unix.Getsockname(s.fd)
	}
	if err == nil {
		r.Addr = fromSockaddr(sa)
	}
	return r, err
}
