// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// Poured is what a Pour brought across: of Transfer, the way to measure and not to
// prove, without sums and for a time instead of a size.
type Poured struct {
	// Bytes that the server has read, of all streams together.
	Bytes int64
	// Elapsed is from the first byte's way out to the server's having read all.
	Elapsed time.Duration
}

type pourArgs struct {
	Dst      netip.AddrPort
	Duration time.Duration
	Streams  int
}

// Pour sends to a server for so long, as much as goes, on so many connections at
// once, each by a thread of its own. The server reads and answers nothing.
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

// Await asks one destination after the other, each until it answers, with a new
// socket for each try, and gives the moment (see Monotonic) at which the last of
// them had answered. A try ends after the time given, and all of it at the
// deadline, which is an error.
func (p *Pod) Await(ctx context.Context, network string, dsts []netip.AddrPort, try, deadline time.Duration) (at int64, err error) {
	if err := p.call(ctx, "await", awaitArgs{network, dsts, try, deadline}, &at); err != nil {
		return 0, fmt.Errorf("wait for %d destinations to answer: %w", len(dsts), err)
	}
	return at, ctx.Err()
}
