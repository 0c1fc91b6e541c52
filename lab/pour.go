// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// Poured is the result of a Pour. A Pour measures throughput: unlike a transfer, it runs for a
// duration, not up to a size, and computes no checksums.
type Poured struct {
	// Bytes is what the server has read, of all streams together.
	Bytes int64
	// Elapsed is the time from the start of the streams until the server has read everything.
	Elapsed time.Duration
}

type pourArgs struct {
	Dst      netip.AddrPort
	Duration time.Duration
	Streams  int
}

// Pour sends to a server for a duration, as fast as it can, on several connections at once,
// each with its own thread. The server reads and answers nothing.
func (p *Pod) Pour(ctx context.Context, dst netip.AddrPort, duration time.Duration, streams int) (poured Poured, err error) {
	err = p.call(ctx, "pour", pourArgs{dst, duration, streams}, &poured)
	return poured, err
}

type awaitArgs struct {
	Network  string
	Dsts     []netip.AddrPort
	Try      time.Duration
	Deadline time.Duration
}

// Await sends requests to one destination after the other until each has answered, with a new
// socket for each try. It returns the time (see Monotonic) at which the last destination had
// answered. try bounds each try. After deadline Await returns an error.
func (p *Pod) Await(ctx context.Context, network string, dsts []netip.AddrPort, try, deadline time.Duration) (at int64, err error) {
	if err := p.call(ctx, "await", awaitArgs{network, dsts, try, deadline}, &at); err != nil {
		return 0, fmt.Errorf("wait for %d destinations to answer: %w", len(dsts), err)
	}
	return at, ctx.Err()
}
