// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// awaitPause is the pause after a failed try.
const awaitPause = time.Millisecond

// pour writes for args.Duration, then waits until the server has read everything.
func (a *agent) pour(ctx context.Context, args pourArgs) (Poured, error) {
	if args.Duration <= 0 || args.Duration > time.Minute || args.Streams < 1 || args.Streams > 1024 {
		return Poured{}, fmt.Errorf("%d streams for %v: 1 to 1024 for up to a minute are possible", args.Streams, args.Duration)
	}
	t, err := newTarget(requestArgs{Network: "tcp", Dst: args.Dst})
	if err != nil {
		return Poured{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, args.Duration)
	defer cancel()
	var stop atomic.Bool
	defer context.AfterFunc(ctx, func() { stop.Store(true) })()
	var total atomic.Int64
	errs := make([]error, args.Streams)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			n, err := t.pour(&stop)
			total.Add(n)
			errs[i] = err
		})
	}
	wg.Wait()
	return Poured{Bytes: total.Load(), Elapsed: time.Since(start)}, errors.Join(errs...)
}

// pourByte fills a stream. No request begins with it.
const pourByte = 0

// pour sends one stream and returns the number of bytes that the server has read.
func (t *target) pour(stop *atomic.Bool) (sent int64, err error) {
	fd, op, err := t.open()
	if err != nil {
		return 0, failure(op, err)
	}
	defer unix.Close(fd)
	if err := t.connect(fd); err != nil {
		return 0, failure("connect", err)
	}
	buf := make([]byte, maxLine)
	for !stop.Load() {
		n, err := unix.Write(fd, buf)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, failure("send", timedOut(err))
		}
		sent += int64(max(n, 0))
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return 0, failure("shutdown", err)
	}
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, failure("wait for the server to have read all", timedOut(err))
		case n == 0:
			return sent, nil
		}
	}
}

func (a *agent) await(ctx context.Context, args awaitArgs) (int64, error) {
	deadline := time.Now().Add(args.Deadline)
	c := newClock()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i, dst := range args.Dsts {
		t, err := newTarget(requestArgs{args.Network, dst, RequestOptions{Timeout: args.Try}})
		if err != nil {
			return 0, err
		}
		t.abort = true
		one := newAsker(t, c, 1)
		for {
			if one.ask(); one.samples[0].Errno == 0 {
				break
			}
			if ctx.Err() != nil || time.Now().After(deadline) {
				detail := fmt.Sprintf("to number %d, %v, for %v: %s", i+1, dst, args.Deadline, one.first.Detail)
				return 0, &Error{Op: one.first.Op, Errno: one.first.Errno, Detail: strings.TrimSuffix(detail, ": ")}
			}
			one.samples, one.first = one.samples[:0], nil
			time.Sleep(awaitPause)
		}
	}
	return c.now(), nil
}
