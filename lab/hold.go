// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net/netip"
	"syscall"
	"time"
)

// HoldOptions are the options of Hold.
type HoldOptions struct {
	// Count is the number of connections to each destination.
	Count int
	// FirstPort is the source port of the first connection to each destination. Further
	// connections to that destination have the following ports, so that connections to
	// several destinations share source ports. 0 means that the kernel chooses the ports.
	FirstPort uint16
	// Concurrency is the number of threads. 0 means four.
	Concurrency int
	// Timeout is for connect and for an answer, each. 0 means five seconds.
	Timeout time.Duration
	// Tries is how often a request is sent over UDP until an answer arrives. 0 means once.
	Tries int
}

// Held is a set of open connections (or connected UDP sockets).
type Held struct {
	pod    *Pod
	handle uint64
	// First is the result of the first exchange on each connection, including connect(2).
	// Failed connections are closed.
	First HeldSummary
}

// HeldSummary is the result of one request on each of many connections.
type HeldSummary struct {
	Asked, Answered int
	// Servers counts answers by server name; Clients by the client address, without port,
	// that the server saw.
	Servers map[string]int
	Clients map[netip.Addr]int
	// Errors counts failures by errno. EBADMSG means an answer to another request. ESTALE
	// means that another server answered than the first time, or that the same server saw
	// another client address or port.
	Errors     map[syscall.Errno]int
	FirstError string
}

type holdArgs struct {
	Network string
	Dsts    []netip.AddrPort
	Options HoldOptions
}

type holdReply struct {
	Handle uint64
	First  HeldSummary
}

type heldCloseArgs struct {
	Handle uint64
	Reset  bool
}

// Hold opens connections, makes one exchange on each, and leaves the connections open. An
// error means that Hold could not start; failures of single connections are in Held.First.
func (p *Pod) Hold(network string, opts HoldOptions, dsts ...netip.AddrPort) (*Held, error) {
	var reply holdReply
	if err := p.call(context.Background(), "hold", holdArgs{network, dsts, opts}, &reply); err != nil {
		return nil, err
	}
	return &Held{pod: p, handle: reply.Handle, First: reply.First}, nil
}

// Ask makes one exchange on every connection that has not failed. A connection that fails is
// closed and not used again.
func (h *Held) Ask() (s HeldSummary, err error) {
	err = h.pod.call(context.Background(), "hold.ask", handleArgs{h.handle}, &s)
	return s, err
}

// Close closes the connections: TCP by a FIN or, with reset, by a RST, which frees their
// ports at once.
func (h *Held) Close(reset bool) error {
	return h.pod.call(context.Background(), "hold.close", heldCloseArgs{h.handle, reset}, &none{})
}
