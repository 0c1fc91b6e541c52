// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net/netip"
	"time"
)

// RequestOptions say how to ask; the zero value is the usual way.
type RequestOptions struct {
	// Timeout is for connecting and for the answer, each; 0: five seconds.
	Timeout time.Duration
	// Local is what to bind to; the zero value leaves it to the kernel. Port 0
	// takes any, an unspecified address (0.0.0.0, ::) leaves that to the kernel.
	Local netip.AddrPort
	// Unconnected asks over UDP by sendto(2) instead of connect(2).
	Unconnected bool
}

// Answer is what came of a request.
type Answer struct {
	// Server is the name of the pod that answered, empty if none did.
	Server string
	// ClientSeen is who the server saw, ServedAt where it was reached.
	ClientSeen, ServedAt netip.AddrPort
	// Local and Peer are what getsockname(2) and getpeername(2) said; From is
	// who the datagram came from, by recvfrom(2) (UDP). v4-mapped addresses are
	// left as they are.
	Local, Peer, From netip.AddrPort
	// Connect is how long connect(2) took, Total that and the exchange.
	Connect, Total time.Duration
	// Err is nil if an answer came; see Error.
	Err error
}

type requestArgs struct {
	Network string
	Dst     netip.AddrPort
	Options RequestOptions
}

// requestReply is Answer as it crosses the pipe.
type requestReply struct {
	Answer
	Err *Error
}

// Request opens a socket, asks dst once and closes the socket. The network is as
// in package net; tcp6 and udp6 speak to an IPv4 dst as v4-mapped, from an IPv6
// socket. It asks once: there is no second try, over UDP either.
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

// Ask is Request with its usual options.
func (p *Pod) Ask(network string, dst netip.AddrPort) Answer {
	return p.Request(network, dst, RequestOptions{})
}

// NetnsCookie is the kernel's number for the pod's network namespace
// (SO_NETNS_COOKIE), the one that eBPF programs see.
func (p *Pod) NetnsCookie() (cookie uint64, err error) {
	err = p.call(context.Background(), "netns.cookie", none{}, &cookie)
	return cookie, err
}
