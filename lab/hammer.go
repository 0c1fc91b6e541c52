// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// HammerOptions say how many exchanges to make. One of Count and Duration must
// be set; with both, what comes first ends it.
type HammerOptions struct {
	Count    int
	Duration time.Duration
	// Concurrency is the number of threads that ask, each one exchange after
	// the other; 0: one.
	Concurrency int
	// Rate is exchanges a second, of all threads together; 0: as fast as it goes.
	Rate float64
	// Timeout is for connecting and for the answer, each; 0: five seconds.
	Timeout time.Duration
	// Unconnected is as in RequestOptions.
	Unconnected bool
	// Keep makes all exchanges of a thread on one connection, which is there
	// before the first: Start and Connected of a Record are the same then. A
	// failure ends the thread.
	Keep bool
	// Records keeps every exchange, not only the sums.
	Records bool
}

// Summary is what many exchanges came to.
type Summary struct {
	// Done counts exchanges, Answered those without an error.
	Done, Answered int
	// Servers counts answers by the name of who gave them.
	Servers map[string]int
	// Errors counts the others by errno: ETIMEDOUT where the time ran out,
	// EBADMSG where something other than a lab's server answered.
	Errors map[syscall.Errno]int
	// FirstError tells of the first of them.
	FirstError string
	Elapsed    time.Duration
	// Connect is of connect(2) alone, Total of connect, request and answer; of
	// exchanges that were answered.
	Connect, Total Latency
	// Records is in the order of the threads, by time within each.
	Records []Record
}

// Latency is a distribution; percentiles are samples, not interpolated.
type Latency struct {
	Min, P50, P90, P99, Max, Mean time.Duration
}

// Record is one exchange. Times are of CLOCK_MONOTONIC in nanoseconds, the same
// in all processes; see Monotonic.
type Record struct {
	// Start is before connect(2), Connected after it, End after the answer (or
	// the failure, where Connected may be 0).
	Start, Connected, End int64
	Server                string // empty if none answered
	Errno                 syscall.Errno
}

// Monotonic is CLOCK_MONOTONIC, now, in nanoseconds.
func Monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}

type hammerArgs struct {
	Network string
	Dst     netip.AddrPort
	Options HammerOptions
}

// sample is a Record in the agent's memory and on its way out of it.
type sample struct {
	Start, Connected, End int64
	Server                int32 // index of a name, -1: none
	Errno                 int32
}

// summaryReply is a Summary with its records packed.
type summaryReply struct {
	Summary
	Records []byte // of samples
	Names   []string
}

func (r *summaryReply) unpack() (Summary, error) {
	s := r.Summary
	if len(r.Records) == 0 {
		return s, nil
	}
	samples := make([]sample, len(r.Records)/binary.Size(sample{}))
	if _, err := binary.Decode(r.Records, binary.LittleEndian, samples); err != nil {
		return s, fmt.Errorf("records of a hammer: %w", err)
	}
	s.Records = make([]Record, len(samples))
	for i, m := range samples {
		s.Records[i] = Record{Start: m.Start, Connected: m.Connected, End: m.End, Errno: syscall.Errno(m.Errno)}
		if m.Server >= 0 {
			s.Records[i].Server = r.Names[m.Server]
		}
	}
	return s, nil
}

// Hammer makes many exchanges with dst, each with a socket of its own, as
// Request does; TCP connections are closed by a reset, so that ports are free
// at once. When ctx ends it stops and gives what it had. Errors of exchanges
// are in the summary; the error is for what kept it from running.
func (p *Pod) Hammer(ctx context.Context, network string, dst netip.AddrPort, opts HammerOptions) (Summary, error) {
	var reply summaryReply
	if err := p.call(ctx, "hammer", hammerArgs{network, dst, opts}, &reply); err != nil {
		return Summary{}, err
	}
	return reply.unpack()
}

// Hammering is a Hammer that runs beside its caller.
type Hammering struct {
	cancel  context.CancelFunc
	done    chan struct{}
	summary Summary
	err     error
}

// StartHammer starts a Hammer; its exchanges may begin some milliseconds later.
// Call Wait or Stop.
func (p *Pod) StartHammer(network string, dst netip.AddrPort, opts HammerOptions) *Hammering {
	ctx, cancel := context.WithCancel(p.lab.ctx)
	h := &Hammering{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.summary, h.err = p.Hammer(ctx, network, dst, opts)
	}()
	return h
}

// Wait waits for the Hammer's own end.
func (h *Hammering) Wait() (Summary, error) {
	<-h.done
	h.cancel()
	return h.summary, h.err
}

// Stop ends it after the exchanges that are under way.
func (h *Hammering) Stop() (Summary, error) {
	h.cancel()
	return h.Wait()
}

// CompareOptions of Compare.
type CompareOptions struct {
	// Rounds is how often every destination is asked.
	Rounds int
	// Warmup is rounds before that which do not count; 0: a tenth of Rounds.
	Warmup int
	// Timeout and Unconnected are as in HammerOptions.
	Timeout     time.Duration
	Unconnected bool
	// Records keeps every exchange, one a round.
	Records bool
}

type compareArgs struct {
	Network string
	Dsts    []netip.AddrPort
	Options CompareOptions
}

// Compare asks several destinations in turn from one thread, one exchange each
// in every round, the first another in every round: what disturbs the machine
// meanwhile disturbs all alike. It gives a summary per destination.
func (p *Pod) Compare(ctx context.Context, network string, dsts []netip.AddrPort, opts CompareOptions) ([]Summary, error) {
	var replies []summaryReply
	if err := p.call(ctx, "compare", compareArgs{network, dsts, opts}, &replies); err != nil {
		return nil, err
	}
	all := make([]Summary, len(replies))
	for i := range replies {
		var err error
		if all[i], err = replies[i].unpack(); err != nil {
			return nil, err
		}
	}
	return all, nil
}
