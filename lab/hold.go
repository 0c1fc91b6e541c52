// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net/netip"
	"syscall"
	"time"
)

// HoldOptions say how many connections to make and how.
type HoldOptions struct {
	// Count is the number of connections to each destination.
	Count int
	// FirstPort is the source port of the first connection to each destination, of
	// the next ones the following numbers: connections to several destinations share
	// them. 0: the kernel chooses.
	FirstPort uint16
	// Concurrency is the number of threads; 0: four.
	Concurrency int
	// Timeout is for connecting and for an answer, each; 0: five seconds.
	Timeout time.Duration
	// Tries is how often a question is sent over UDP until an answer comes; 0: once.
	Tries int
}

// Held is a set of connections (or connected UDP sockets) that stay open.
type Held struct {
	pod    *Pod
	handle uint64
	// First is what came of making them: a connection counts as answered once a
	// first question was. Those that failed are not kept.
	First HeldSummary
}

// HeldSummary is what came of one question on each of many connections.
type HeldSummary struct {
	Asked, Answered int
	// Servers counts answers by who gave them; Clients by the address, without port,
	// that the server saw.
	Servers map[string]int
	Clients map[netip.Addr]int
	// Errors counts what was not answered, by errno: EBADMSG where an answer was to
	// another's question, ESTALE where another server answered than at first, or the same
	// one saw another client (its address or port).
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

// Hold opens connections, asks once on each and keeps them. The error is for what
// kept it from trying; what failed for single ones is in Held.First.
func (p *Pod) Hold(network string, opts HoldOptions, dsts ...netip.AddrPort) (*Held, error) {
	var reply holdReply
	if err := p.call(context.Background(), "hold", holdArgs{network, dsts, opts}, &reply); err != nil {
		return nil, err
	}
	return &Held{pod: p, handle: reply.Handle, First: reply.First}, nil
}

// Ask asks once on every connection that has not failed, and drops those that fail
// now.
func (h *Held) Ask() (s HeldSummary, err error) {
	err = h.pod.call(context.Background(), "hold.ask", handleArgs{h.handle}, &s)
	return s, err
}

// Close closes them, TCP by a FIN or, with reset, by a RST, which leaves their
// ports free at once.
func (h *Held) Close(reset bool) error {
	return h.pod.call(context.Background(), "hold.close", heldCloseArgs{h.handle, reset}, &none{})
}
