// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxExchanges bounds the exchanges of one hammer, and so its memory.
const maxExchanges = 4 << 20

// clock reads CLOCK_MONOTONIC through the runtime's clock, which makes no system call.
type clock struct {
	base   time.Time
	offset int64 // of CLOCK_MONOTONIC at base
}

func newClock() clock {
	var c clock
	best := time.Hour
	for range 10 {
		before := time.Now()
		mono := Monotonic()
		if gap := time.Since(before); gap < best {
			best, c.base, c.offset = gap, before, mono-int64(gap/2)
		}
	}
	return c
}

func (c clock) now() int64 { return c.offset + int64(time.Since(c.base)) }

// asker makes exchanges from one thread and records them.
type asker struct {
	*target
	clock
	buf     []byte
	samples []sample
	names   []string
	index   map[string]int32
	first   *Error
}

func newAsker(t *target, c clock, room int) *asker {
	return &asker{target: t, clock: c, buf: make([]byte, 1024), samples: make([]sample, 0, room), index: map[string]int32{}}
}

// ask makes one exchange. Only system calls happen between its readings of the clock.
func (a *asker) ask() {
	fd, op, err := a.open()
	m := sample{Server: -1, Start: a.now()}
	var n int
	if err == nil {
		op, err = "connect", a.connect(fd)
	}
	if err == nil {
		m.Connected = a.now()
		op, err = "send", a.send(fd)
	}
	if err == nil {
		op = "recv"
		n, err = a.receive(fd, a.buf)
	}
	m.End = a.now()
	if fd >= 0 {
		unix.Close(fd)
	}
	a.record(m, op, n, err)
}

// again calls ask and returns true, so that a loop continues after a failure.
func (a *asker) again() bool {
	a.ask()
	return true
}

// askOn makes one exchange on an open connection.
func (a *asker) askOn(fd int) bool {
	m := sample{Server: -1, Start: a.now()}
	m.Connected = m.Start
	var n int
	op, err := "send", a.send(fd)
	if err == nil {
		op = "recv"
		n, err = a.receive(fd, a.buf)
	}
	m.End = a.now()
	a.record(m, op, n, err)
	return err == nil
}

// record records the result of an exchange and the server that answered.
func (a *asker) record(m sample, op string, n int, err error) {
	if err == nil {
		m.Server, err = a.who(a.buf[:n])
	}
	if err != nil {
		m.Errno = int32(unix.EBADMSG)
		var errno syscall.Errno
		if errors.As(err, &errno) {
			m.Errno = int32(errno)
		}
		if a.first == nil {
			a.first = failure(op, err)
		}
	}
	a.samples = append(a.samples, m)
}

// keep opens a connection for askOn. It records a failure as an exchange.
func (a *asker) keep() (fd int, ok bool) {
	fd, op, err := a.open()
	if err == nil {
		op, err = "connect", a.connect(fd)
	}
	if err == nil {
		return fd, true
	}
	if fd >= 0 {
		unix.Close(fd)
	}
	a.record(sample{Server: -1, Start: a.now(), End: a.now()}, op, 0, err)
	return -1, false
}

// who returns the index of the server's name in an answer.
func (a *asker) who(line []byte) (int32, error) {
	words, ok := parseAnswer(line)
	if !ok || !bytes.Equal(words[0], a.token) {
		return -1, unix.EBADMSG
	}
	i, ok := a.index[string(words[1])] // does not allocate
	if !ok {
		i = int32(len(a.names))
		a.names = append(a.names, string(words[1]))
		a.index[a.names[i]] = i
	}
	return i, nil
}

func (a *agent) hammer(ctx context.Context, args hammerArgs) (*summaryReply, error) {
	o := args.Options
	if o.Count <= 0 && o.Duration <= 0 {
		return nil, errors.New("a hammer without an end: set Count or Duration")
	}
	if o.Count <= 0 || o.Count > maxExchanges {
		o.Count = maxExchanges
	}
	o.Concurrency = max(o.Concurrency, 1)
	t, err := newTarget(requestArgs{args.Network, args.Dst, RequestOptions{Timeout: o.Timeout, Unconnected: o.Unconnected}})
	if err != nil {
		return nil, err
	}
	t.abort = true
	if o.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Duration)
		defer cancel()
	}
	var stop atomic.Bool
	defer context.AfterFunc(ctx, func() { stop.Store(true) })()
	var next atomic.Int64
	askers := make([]*asker, o.Concurrency)
	c := newClock()
	start := time.Now()
	var wg sync.WaitGroup
	for i := range askers {
		askers[i] = newAsker(t, c, min(o.Count/o.Concurrency+1, 1<<16))
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ask := askers[i].again
			if o.Keep {
				fd, ok := askers[i].keep()
				if !ok {
					return
				}
				defer unix.Close(fd)
				ask = func() bool { return askers[i].askOn(fd) }
			}
			for !stop.Load() {
				n := next.Add(1)
				if n > int64(o.Count) || !pace(ctx, start, n-1, o.Rate) || !ask() {
					return
				}
			}
		})
	}
	wg.Wait()
	return summarize(askers, time.Since(start), o.Records), nil
}

// pace waits until the nth exchange is due. It returns false if ctx ended first.
func pace(ctx context.Context, start time.Time, n int64, rate float64) bool {
	if rate <= 0 {
		return true
	}
	wait := time.Until(start.Add(time.Duration(float64(n) / rate * float64(time.Second))))
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (a *agent) compare(ctx context.Context, args compareArgs) ([]*summaryReply, error) {
	o := args.Options
	if o.Rounds <= 0 || o.Rounds > maxExchanges {
		return nil, fmt.Errorf("%d rounds: one to %d are possible", o.Rounds, maxExchanges)
	}
	if o.Warmup <= 0 {
		o.Warmup = o.Rounds / 10
	}
	c := newClock()
	askers := make([]*asker, len(args.Dsts))
	for i, dst := range args.Dsts {
		t, err := newTarget(requestArgs{args.Network, dst, RequestOptions{Timeout: o.Timeout, Unconnected: o.Unconnected}})
		if err != nil {
			return nil, err
		}
		t.abort = true
		askers[i] = newAsker(t, c, max(o.Rounds, o.Warmup))
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	askAll(ctx, askers, o.Warmup)
	for _, a := range askers {
		a.samples, a.first = a.samples[:0], nil
	}
	start := time.Now()
	askAll(ctx, askers, o.Rounds)
	elapsed := time.Since(start)
	all := make([]*summaryReply, len(askers))
	for i, a := range askers {
		all[i] = summarize([]*asker{a}, elapsed, o.Records)
	}
	return all, nil
}

func askAll(ctx context.Context, askers []*asker, rounds int) {
	var stop atomic.Bool
	defer context.AfterFunc(ctx, func() { stop.Store(true) })()
	for round := 0; round < rounds && !stop.Load(); round++ {
		for i := range askers {
			askers[(round+i)%len(askers)].ask()
		}
	}
}

func summarize(askers []*asker, elapsed time.Duration, records bool) *summaryReply {
	r := &summaryReply{Summary: Summary{Servers: map[string]int{}, Errors: map[syscall.Errno]int{}, Elapsed: elapsed}}
	var connect, total []time.Duration
	for _, a := range askers {
		offset := int32(len(r.Names))
		r.Names = append(r.Names, a.names...)
		if a.first != nil && r.FirstError == "" {
			r.FirstError = a.first.Error()
		}
		for i := range a.samples {
			m := &a.samples[i]
			r.Done++
			if m.Errno != 0 {
				r.Errors[syscall.Errno(m.Errno)]++
				continue
			}
			r.Answered++
			r.Servers[a.names[m.Server]]++
			connect = append(connect, time.Duration(m.Connected-m.Start))
			total = append(total, time.Duration(m.End-m.Start))
			m.Server += offset
		}
		if records {
			// It cannot fail: the elements have a fixed size.
			r.Records, _ = binary.Append(r.Records, binary.LittleEndian, a.samples)
		}
	}
	r.Connect, r.Total = distribution(connect), distribution(total)
	return r
}

// distribution computes a Latency. It sorts d in place.
func distribution(d []time.Duration) (l Latency) {
	if len(d) == 0 {
		return l
	}
	slices.Sort(d)
	at := func(q float64) time.Duration { return d[int(q*float64(len(d)-1)+0.5)] }
	var sum time.Duration
	for _, v := range d {
		sum += v
	}
	return Latency{Min: d[0], P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: d[len(d)-1], Mean: sum / time.Duration(len(d))}
}
