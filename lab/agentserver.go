// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxLine bounds a request, and the bytes that a server buffers for a connection.
const maxLine = 64 << 10

// server serves one socket from one thread, with an epoll loop of plain system calls, so that
// a client measures little else than the network.
type server struct {
	name   string
	kind   int // SOCK_STREAM or SOCK_DGRAM
	fd     int
	epoll  int
	wakeup int // an eventfd that stops run
	addr   netip.AddrPort
	conns  map[int]*conn
	moving sync.Map // descriptors of connections that handOver passed on
	buf    []byte
	line   []byte // the answer being written
	count  atomic.Uint64
	bulk   sync.WaitGroup // goroutines of connections that handOver passed on
	closed atomic.Bool
	done   chan struct{}
}

// conn is an accepted connection. Its addresses are formatted once.
type conn struct {
	client, own string
	partial     []byte // the received part of a line
	discard     bool   // true for a connection of Pour
}

func (a *agent) serve(_ context.Context, args serveArgs) (serveReply, error) {
	s := &server{name: a.name, conns: map[int]*conn{}, buf: make([]byte, maxLine), done: make(chan struct{})}
	if err := s.listen(args); err != nil {
		return serveReply{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.nextHandle()
	a.servers[h] = s
	go s.run()
	return serveReply{h, s.addr}, nil
}

func (a *agent) findServer(h uint64) (*server, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.servers[h]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("no server %d", h)
}

func (a *agent) serveCount(_ context.Context, args handleArgs) (uint64, error) {
	s, err := a.findServer(args.Handle)
	if err != nil {
		return 0, err
	}
	return s.count.Load(), nil
}

func (a *agent) serveStop(_ context.Context, args handleArgs) (none, error) {
	s, err := a.findServer(args.Handle)
	if err != nil {
		return none{}, err
	}
	if s.closed.CompareAndSwap(false, true) {
		if _, err := unix.Write(s.wakeup, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			return none{}, failure("stop the server", err)
		}
	}
	<-s.done
	return none{}, nil
}

// listen opens the socket. For tcp and udp without an address it is one IPv6 socket for
// both families, as most servers use.
func (s *server) listen(args serveArgs) error {
	domain, kind, err := socketKind(args.Network, args.Addr.Addr())
	if err != nil {
		return err
	}
	s.kind = kind
	if s.fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return failure("socket", err)
	}
	if err := s.prepare(domain, args); err != nil {
		unix.Close(s.fd)
		return err
	}
	return nil
}

func (s *server) prepare(domain int, args serveArgs) error {
	err := s.setOptions(domain, len(args.Network) > len("tcp"))
	if err == nil && args.Share {
		err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	if err != nil {
		return failure("setsockopt", err)
	}
	sa, err := toSockaddr(domain, args.Addr)
	if err != nil {
		return err
	}
	if err := unix.Bind(s.fd, sa); err != nil {
		return failure("bind to "+args.Addr.String(), err)
	}
	if s.kind == unix.SOCK_STREAM {
		if err := unix.Listen(s.fd, 4096); err != nil {
			return failure("listen", err)
		}
	}
	own, err := unix.Getsockname(s.fd)
	if err != nil {
		return failure("getsockname", err)
	}
	s.addr = fromSockaddr(own)
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return failure("epoll_create1", err)
	}
	if s.wakeup, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(s.epoll)
		return failure("eventfd", err)
	}
	if err := s.watch(s.fd); err != nil {
		return failure("epoll_ctl", err)
	}
	return failureOrNil("epoll_ctl", s.watch(s.wakeup))
}

// failureOrNil is failure for callers that return the interface error: it never returns a
// typed nil.
func failureOrNil(op string, err error) error {
	if err == nil {
		return nil
	}
	return failure(op, err)
}

func (s *server) setOptions(domain int, oneFamily bool) error {
	set := func(level, opt, value int) error { return unix.SetsockoptInt(s.fd, level, opt, value) }
	if s.kind == unix.SOCK_STREAM {
		// A restarted server must not wait for connections of the last one in TIME_WAIT.
		if err := set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	if domain == unix.AF_INET {
		if s.kind == unix.SOCK_DGRAM {
			return set(unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
		return nil
	}
	only := 0
	if oneFamily {
		only = 1
	}
	if err := set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
		return err
	}
	if s.kind == unix.SOCK_DGRAM {
		return set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return nil
}

func (s *server) watch(fd int) error {
	return unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// run serves until the server is stopped.
func (s *server) run() {
	defer close(s.done)
	defer s.closeAll()
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(s.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			fmt.Fprintf(os.Stderr, "lab server %s on %v: epoll_wait: %v\n", s.name, s.addr, err)
			return
		}
		for _, e := range events[:max(n, 0)] {
			switch fd := int(e.Fd); {
			case fd == s.wakeup:
				return
			case fd != s.fd:
				s.converse(fd)
			case s.kind == unix.SOCK_STREAM:
				s.accept()
			default:
				s.datagrams()
			}
		}
	}
}

func (s *server) closeAll() {
	for fd := range s.conns {
		unix.Close(fd)
	}
	s.endBulk()
	unix.Close(s.fd)
	unix.Close(s.epoll)
	unix.Close(s.wakeup)
}

func (s *server) accept() {
	for range 64 { // then other descriptors are served
		fd, sa, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			return // no connection is waiting, or the client closed it
		}
		own, err := unix.Getsockname(fd)
		if err == nil {
			err = s.watch(fd)
		}
		if err != nil {
			unix.Close(fd)
			continue
		}
		s.conns[fd] = &conn{client: unmap(fromSockaddr(sa)).String(), own: unmap(fromSockaddr(own)).String()}
		s.converse(fd) // the request may have arrived already
	}
}

// converse answers all lines that have arrived.
func (s *server) converse(fd int) {
	c := s.conns[fd]
	if c == nil {
		return // closed or handed over since epoll_wait returned
	}
	n, err := unix.Read(fd, s.buf)
	if err == unix.EAGAIN || err == unix.EINTR {
		return // epoll reports it again
	}
	if err != nil || n == 0 || len(c.partial)+n > maxLine {
		s.hangUp(fd)
		return
	}
	if c.discard = c.discard || s.buf[0] == pourByte && len(c.partial) == 0; c.discard {
		return
	}
	data := s.buf[:n]
	if len(c.partial) > 0 {
		c.partial = append(c.partial, data...)
		data = c.partial
	}
	for {
		token, rest, found := bytes.Cut(data, []byte{'\n'})
		if !found {
			break
		}
		data = rest
		s.count.Add(1)
		if order, ok := parseOrder(token); ok {
			s.handOver(fd, c, order, data)
			return
		}
		if _, err := unix.Write(fd, s.answer(token, c.client, c.own)); err != nil {
			s.hangUp(fd)
			return
		}
	}
	c.partial = append(c.partial[:0], data...)
}

func (s *server) hangUp(fd int) {
	delete(s.conns, fd)
	unix.Close(fd) // also removes it from the epoll set
}

func (s *server) answer(token []byte, client, own string) []byte {
	if len(token) == 0 {
		token = []byte{'-'}
	}
	b := append(append(s.line[:0], token...), ' ')
	b = append(append(b, s.name...), ' ')
	b = append(append(b, client...), ' ')
	s.line = append(append(b, own...), '\n')
	return s.line
}

func (s *server) datagrams() {
	var oob [128]byte
	for range 64 {
		n, oobn, _, from, err := unix.Recvmsg(s.fd, s.buf, oob[:], 0)
		if err != nil {
			return
		}
		self, control := packetInfo(oob[:oobn])
		own := unmap(netip.AddrPortFrom(self, s.addr.Port()))
		token := bytes.TrimSuffix(s.buf[:n], []byte{'\n'})
		answer := s.answer(token, unmap(fromSockaddr(from)).String(), own.String())
		s.count.Add(1)
		// A datagram that cannot be sent is lost.
		_, _ = unix.SendmsgN(s.fd, answer, control, from, 0)
	}
}
