// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"
	"time"
)

// Socket is a socket in a pod. Its methods are the system calls of the same name, one each,
// on a blocking socket with timeouts. They return what the kernel returned (see Error),
// with two exceptions: a timeout is ETIMEDOUT, and an interrupted call is repeated.
type Socket struct {
	pod    *Pod
	handle uint64
}

// Events of Poll.
const (
	PollIn  = 0x1 // POLLIN
	PollOut = 0x4 // POLLOUT
	PollErr = 0x8 // POLLERR
	PollHup = 0x10
)

// socketCallArgs is one call on a socket: Call is its name, the rest are its arguments.
type socketCallArgs struct {
	Handle  uint64
	Call    string
	Addr    netip.AddrPort
	Data    []byte
	Timeout time.Duration
	Events  int16
}

type socketReply struct {
	Addr   netip.AddrPort
	Data   []byte
	Errno  syscall.Errno // getsockopt(SO_ERROR)
	Events int16
}

// Socket opens a socket: tcp4, tcp6, udp4 or udp6. IPv6 sockets have IPV6_V6ONLY off and
// take IPv4 addresses as v4-mapped ones.
func (p *Pod) Socket(network string) *Socket {
	p.lab.t.Helper()
	s := &Socket{pod: p}
	if p.lab.Err() != nil {
		return s
	}
	if err := p.call(context.Background(), "socket", network, &s.handle); err != nil {
		p.lab.fail(fmt.Errorf("open a %s socket in pod %s: %w", network, p.name, err))
	}
	return s
}

func (s *Socket) call(args socketCallArgs) (reply socketReply, err error) {
	args.Handle = s.handle
	if args.Timeout <= 0 {
		args.Timeout = requestTimeout
	}
	err = s.pod.call(context.Background(), "socket.call", args, &reply)
	return reply, err
}

// Bind binds the socket.
func (s *Socket) Bind(addr netip.AddrPort) error {
	_, err := s.call(socketCallArgs{Call: "bind", Addr: addr})
	return err
}

// Connect connects the socket, with a timeout of five seconds.
func (s *Socket) Connect(dst netip.AddrPort) error {
	_, err := s.call(socketCallArgs{Call: "connect", Addr: dst})
	return err
}

// Disconnect removes the peer of a UDP socket: connect(2) to AF_UNSPEC.
func (s *Socket) Disconnect() error {
	_, err := s.call(socketCallArgs{Call: "disconnect"})
	return err
}

// Send sends on a connected socket.
func (s *Socket) Send(data []byte) error {
	_, err := s.call(socketCallArgs{Call: "send", Data: data})
	return err
}

// SendTo sends a datagram.
func (s *Socket) SendTo(dst netip.AddrPort, data []byte) error {
	_, err := s.call(socketCallArgs{Call: "sendto", Addr: dst, Data: data})
	return err
}

// Recv receives one datagram, or the available bytes of a stream, within the timeout. The
// address is the datagram's source, the zero value for TCP. Over TCP, no data without an
// error means the end of the stream.
func (s *Socket) Recv(timeout time.Duration) ([]byte, netip.AddrPort, error) {
	r, err := s.call(socketCallArgs{Call: "recv", Timeout: timeout})
	return r.Data, r.Addr, err
}

// PeerName is getpeername(2).
func (s *Socket) PeerName() (netip.AddrPort, error) {
	r, err := s.call(socketCallArgs{Call: "getpeername"})
	return r.Addr, err
}

// LocalName is getsockname(2).
func (s *Socket) LocalName() (netip.AddrPort, error) {
	r, err := s.call(socketCallArgs{Call: "getsockname"})
	return r.Addr, err
}

// SockError returns and clears the socket's pending error (SO_ERROR), 0 if there is none.
func (s *Socket) SockError() (syscall.Errno, error) {
	r, err := s.call(socketCallArgs{Call: "getsockerror"})
	return r.Errno, err
}

// Poll waits for events and returns those that are set, including PollErr and PollHup,
// which are always polled for. It returns 0 after the timeout.
func (s *Socket) Poll(events int16, timeout time.Duration) (int16, error) {
	r, err := s.call(socketCallArgs{Call: "poll", Events: events, Timeout: timeout})
	return r.Events, err
}

// Cookie returns the socket's cookie (SO_COOKIE), which eBPF programs see too.
func (s *Socket) Cookie() (cookie uint64, err error) {
	err = s.pod.call(context.Background(), "socket.cookie", handleArgs{s.handle}, &cookie)
	return cookie, err
}

// Close closes the socket, after the calls on it that are in flight.
func (s *Socket) Close() error {
	return s.pod.call(context.Background(), "socket.close", handleArgs{s.handle}, &none{})
}
