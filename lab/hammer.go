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

// HammerOptions are the options of Hammer. At least one of Count and Duration must be set. If
// both are set, the first limit that is reached ends the Hammer.
type HammerOptions struct {
	Count    int
	Duration time.Duration
	// Concurrency is the number of threads. Each makes one exchange after the other. 0
	// means one thread.
	Concurrency int
	// Rate is exchanges per second of all threads together. 0 means no limit.
	Rate float64
	// Timeout is for connect and for the answer, each. 0 means five seconds.
	Timeout time.Duration
	// Unconnected is as in RequestOptions.
	Unconnected bool
	// Keep makes all exchanges of a thread on one connection, opened before the first
	// exchange: Start and Connected of a Record are equal then. A failure ends the thread.
	Keep bool
	// Records keeps every exchange, not only the totals.
	Records bool
}

// Summary is the result of many exchanges.
type Summary struct {
	// Done counts exchanges, Answered those without an error.
	Done, Answered int
	// Servers counts answers by server name.
	Servers map[string]int
	// Errors counts failed exchanges by errno: ETIMEDOUT after a timeout, EBADMSG if
	// something other than a lab's server answered.
	Errors map[syscall.Errno]int
	// FirstError describes the first failure.
	FirstError string
	Elapsed    time.Duration
	// Connect is the time of connect(2) alone, Total of connect, request and answer. Both
	// cover answered exchanges only.
	Connect, Total Latency
	// Records is ordered by thread, and by time within each thread.
	Records []Record
}

// Latency is a distribution. Percentiles are samples, not interpolated.
type Latency struct {
	Min, P50, P90, P99, Max, Mean time.Duration
}

// Record is one exchange. Times are CLOCK_MONOTONIC in nanoseconds, comparable between
// processes; see Monotonic.
type Record struct {
	// Start is before connect(2), Connected after it, End after the answer or the failure.
	// After a failure Connected may be 0.
	Start, Connected, End int64
	Server                string // empty if none answered
	Errno                 syscall.Errno
}

// Monotonic returns the current CLOCK_MONOTONIC in nanoseconds.
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

// sample is a Record as the agent stores and sends it.
type sample struct {
	Start, Connected, End int64
	Server                int32 // index of a name, -1: none
	Errno                 int32
}

// summaryReply is a Summary with packed records.
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

// Hammer makes many exchanges with dst, each on its own socket as Request does. TCP
// connections are closed by a RST, so that their ports are free at once. When ctx ends,
// Hammer stops and returns the summary of the exchanges made. The summary counts failed
// exchanges; an error means that Hammer could not run.
func (p *Pod) Hammer(ctx context.Context, network string, dst netip.AddrPort, opts HammerOptions) (Summary, error) {
	var reply summaryReply
	if err := p.call(ctx, "hammer", hammerArgs{network, dst, opts}, &reply); err != nil {
		return Summary{}, err
	}
	return reply.unpack()
}

// Hammering is a Hammer that runs concurrently with its caller.
type Hammering struct {
	cancel  context.CancelFunc
	done    chan struct{}
	summary Summary
	err     error
}

// StartHammer starts a Hammer. Its exchanges may begin some milliseconds later. The caller
// must call Wait or Stop.
func (p *Pod) StartHammer(network string, dst netip.AddrPort, opts HammerOptions) *Hammering {
	ctx, cancel := context.WithCancel(p.lab.ctx)
	h := &Hammering{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.summary, h.err = p.Hammer(ctx, network, dst, opts)
	}()
	return h
}

// Wait waits until the Hammer ends by its own limits.
func (h *Hammering) Wait() (Summary, error) {
	<-h.done
	h.cancel()
	return h.summary, h.err
}

// Stop ends the Hammer after the exchanges in flight.
func (h *Hammering) Stop() (Summary, error) {
	h.cancel()
	return h.Wait()
}

// CompareOptions are the options of Compare.
type CompareOptions struct {
	// Rounds is how often every destination is asked.
	Rounds int
	// Warmup is the number of rounds before those, which do not count. 0 means a tenth of
	// Rounds.
	Warmup int
	// Timeout and Unconnected are as in HammerOptions.
	Timeout     time.Duration
	Unconnected bool
	// Records keeps every exchange, one per round.
	Records bool
}

type compareArgs struct {
	Network string
	Dsts    []netip.AddrPort
	Options CompareOptions
}

// Compare makes one exchange with each of several destinations per round, from one thread.
// Every round starts at the next destination, so that disturbances of the machine affect all
// destinations alike. It returns a summary per destination.
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
