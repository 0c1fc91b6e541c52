// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net/netip"
	"time"
)

// RequestOptions are the options of a request. The zero value has the defaults.
type RequestOptions struct {
	// Timeout is for connect and for the answer, each. 0 means five seconds.
	Timeout time.Duration
	// Local is the address to bind to. With the zero value the socket is not bound. With
	// port 0 the kernel chooses the port, with an unspecified address (0.0.0.0, ::) the
	// address.
	Local netip.AddrPort
	// Unconnected asks over UDP by sendto(2) instead of connect(2).
	Unconnected bool
}

// Answer is the result of a request.
type Answer struct {
	// Server is the name of the pod that answered, empty if none did.
	Server string
	// ClientSeen is the client address that the server saw, ServedAt the address at which
	// it was reached.
	ClientSeen, ServedAt netip.AddrPort
	// Local and Peer are the results of getsockname(2) and getpeername(2). From is the
	// datagram's source by recvfrom(2) (UDP). v4-mapped addresses are not changed.
	Local, Peer, From netip.AddrPort
	// Connect is the time of connect(2), Total that of connect(2) and the exchange.
	Connect, Total time.Duration
	// Err is nil if an answer arrived; see Error.
	Err error
}

type requestArgs struct {
	Network string
	Dst     netip.AddrPort
	Options RequestOptions
}

// requestReply is an Answer on the pipe from the agent.
type requestReply struct {
	Answer
	Err *Error
}

// Request opens a socket, makes one exchange with dst and closes the socket. Networks are
// named as in package net; tcp6 and udp6 use an IPv4 dst as v4-mapped, from an IPv6 socket.
// There is no retry, over UDP either.
func (p *Pod) Request(network string, dst netip.AddrPort, opts RequestOptions) Answer {
	var reply requestReply
	if err := p.call(context.Background(), "request", requestArgs{network, dst, opts}, &reply); err != nil {
		return Answer{Err: err}
	}
	if reply.Err != nil {
		reply.Answer.Err = reply.Err
	}
	return reply.Answer
}

// Ask is Request with default options.
func (p *Pod) Ask(network string, dst netip.AddrPort) Answer {
	return p.Request(network, dst, RequestOptions{})
}

// NetnsCookie returns the cookie of the pod's network namespace (SO_NETNS_COOKIE). In eBPF
// programs bpf_get_netns_cookie returns the same cookie.
func (p *Pod) NetnsCookie() (cookie uint64, err error) {
	err = p.call(context.Background(), "netns.cookie", none{}, &cookie)
	return cookie, err
}
