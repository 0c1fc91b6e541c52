// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// socketKind returns the arguments of socket(2) for a network named as in package net: tcp,
// tcp4, tcp6, udp, udp4, udp6. Without a digit the family is that of addr. With 6 an IPv4
// address is used as v4-mapped.
func socketKind(network string, addr netip.Addr) (domain, kind int, err error) {
	proto, family := strings.TrimRight(network, "46"), strings.TrimLeft(network, "tcpud")
	switch proto {
	case "tcp":
		kind = unix.SOCK_STREAM
	case "udp":
		kind = unix.SOCK_DGRAM
	}
	switch {
	case family == "4" || family == "" && addr.Unmap().Is4():
		domain = unix.AF_INET
	case family == "6" || family == "":
		domain = unix.AF_INET6
	}
	if kind == 0 || domain == 0 {
		return 0, 0, fmt.Errorf("%q is no network: tcp, tcp4, tcp6, udp, udp4 or udp6 is", network)
	}
	return domain, kind, nil
}

// anyAddr returns the unspecified address of a network, with a port.
func anyAddr(network string, port uint16) netip.AddrPort {
	if strings.HasSuffix(network, "4") {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), port)
}

// toSockaddr returns the address for a socket of that domain: for an IPv6 socket, an IPv4
// address becomes v4-mapped.
func toSockaddr(domain int, a netip.AddrPort) (unix.Sockaddr, error) {
	if !a.IsValid() || domain == unix.AF_INET && !a.Addr().Unmap().Is4() {
		return nil, fmt.Errorf("%v is no address for a socket of that family", a)
	}
	if domain == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().Unmap().As4()}, nil
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}, nil
}

// fromSockaddr returns the address and port. v4-mapped addresses are not changed. The zero
// value means no address.
func fromSockaddr(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// setTimeouts bounds connect, send and receive on a blocking socket. To the kernel 0 means
// no timeout, so a duration below a microsecond is rounded up to one.
func setTimeouts(fd int, d time.Duration) error {
	tv := unix.NsecToTimeval(max(d, time.Microsecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return err
	}
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

// timedOut returns ETIMEDOUT for the errors that a blocking socket returns after its own
// timeout.
func timedOut(err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINPROGRESS) {
		return unix.ETIMEDOUT
	}
	return err
}

// pollFor waits for events on fd. It returns 0 after the timeout.
func pollFor(fd int, events int16, timeout time.Duration) (int16, error) {
	deadline := time.Now().Add(timeout)
	for {
		left := max(time.Until(deadline), 0)
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		ts := unix.NsecToTimespec(left.Nanoseconds())
		n, err := unix.Ppoll(fds, &ts, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return 0, err
		}
		return fds[0].Revents, nil
	}
}

// connectTo calls connect(2) on a blocking socket with timeouts. A signal does not stop a
// connect that has begun: connectTo waits for it.
func connectTo(fd int, sa unix.Sockaddr, timeout time.Duration) error {
	err := unix.Connect(fd, sa)
	if !errors.Is(err, unix.EINTR) {
		return timedOut(err)
	}
	ready, err := pollFor(fd, unix.POLLOUT, timeout)
	if err != nil {
		return err
	}
	if ready == 0 {
		return unix.ETIMEDOUT
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return err
}

// netnsCookie returns the cookie of the socket's network namespace.
func netnsCookie(fd int) (uint64, error) {
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// packetInfo returns a datagram's destination address, from its control messages, and the
// control message that sends a reply from that address.
func packetInfo(oob []byte) (self netip.Addr, reply []byte) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return self, nil
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// ipi_spec_dst is the address to reply from, ipi_addr the destination in the
			// packet's header. They differ for broadcasts only.
			addr := [4]byte(m.Data[4:8])
			return netip.AddrFrom4(addr), unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: addr})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			addr := [16]byte(m.Data[0:16])
			info := &unix.Inet6Pktinfo{Addr: addr}
			if a := netip.AddrFrom16(addr); a.IsLinkLocalUnicast() {
				info.Ifindex = binary.NativeEndian.Uint32(m.Data[16:20])
			}
			return netip.AddrFrom16(addr), unix.PktInfo6(info)
		}
	}
	return self, nil
}
