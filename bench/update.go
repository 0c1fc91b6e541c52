// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"shunt/lab"
)

// Limits of one update.
const (
	probeRate     = 2000 // exchanges per second: a resolution of half a millisecond
	probeDeadline = 2 * time.Minute
	probePoll     = 2 * time.Millisecond
)

// measureUpdates moves the moving service's endpoint back and forth, one contender after
// the other in every round. Only one of the contenders that watch the API server is awake
// at a time, and it first catches up with the changes made for the others.
func (r *runner) measureUpdates(ctx context.Context, loads map[*place]*workload) error {
	for round := range r.Updates {
		for i := range r.places {
			p := r.places[(round+i)%len(r.places)]
			if p.name == nameDirect {
				continue
			}
			before := *loads[p]
			after := before
			after.Moved = !before.Moved
			took, err := r.update(ctx, p, &before, &after)
			if err != nil {
				return fmt.Errorf("%s: update: %w", p.name, err)
			}
			*loads[p] = after
			r.report.series(Key{Size: after.Size, Contender: p.name, Measure: Update}).
				add([]float64{took.Seconds() * 1e3}, 0)
			r.progress(updateCost*after.weight(), "%v: update %d of %d", after.Size, round+1, r.Updates)
		}
	}
	return nil
}

// update moves the endpoint while a client asks the service. It returns the time from the
// start of the change to the end of the first connect() to the new endpoint.
func (r *runner) update(ctx context.Context, p *place, before, after *workload) (time.Duration, error) {
	do, err := p.update(before, after)
	if err != nil {
		return 0, err
	}
	dst := netip.AddrPortFrom(clusterIP(after.moving()), servicePort)
	from, to := p.server, p.next
	oldServer, newServer := p.servers[serverAddr], p.servers[nextAddr]
	if before.Moved {
		from, to, oldServer, newServer = to, from, newServer, oldServer
	}
	if err := p.wake(ctx); err != nil {
		return 0, err
	}
	if err := p.reaches(ctx, dst, from); err != nil {
		return 0, err
	}
	probe := p.prober.StartHammer("tcp4", dst, lab.HammerOptions{Rate: probeRate, Duration: probeDeadline,
		Timeout: time.Second, Records: true})
	// The clock must not start before the client asks.
	err = r.answers(ctx, oldServer)
	start := lab.Monotonic()
	if err == nil {
		err = do(ctx)
	}
	if err == nil {
		err = r.answers(ctx, newServer)
	}
	s, stopErr := probe.Stop()
	if err = r.whole(ctx, err, true); err != nil {
		return 0, err
	}
	if stopErr != nil {
		return 0, stopErr
	}
	if err := p.rest(ctx); err != nil {
		return 0, err
	}
	return firstOf(s.Records, to.Name(), start)
}

// reaches waits until a server answers at the service's address.
func (p *place) reaches(ctx context.Context, dst netip.AddrPort, server *lab.Pod) error {
	deadline := time.Now().Add(probeDeadline)
	for {
		a := p.prober.Ask("tcp4", dst)
		if a.Err == nil && a.Server == server.Name() {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%v leads to %q and not to %s after %v", dst, a.Server, server.Name(), probeDeadline), a.Err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(probePoll):
		}
	}
}

// firstOf returns the time from start to the first connection to a server.
func firstOf(records []lab.Record, server string, start int64) (time.Duration, error) {
	asked := false
	for _, rec := range records {
		asked = asked || rec.Start < start
		if rec.Server == server && rec.Errno == 0 {
			if !asked || rec.Connected < start {
				return 0, fmt.Errorf("%s answered before the change, or no request was sent then", server)
			}
			return time.Duration(rec.Connected - start), nil
		}
	}
	return 0, fmt.Errorf("none of %d connections was answered by %s", len(records), server)
}

// answers waits until a server has answered once more.
func (r *runner) answers(ctx context.Context, s *lab.Server) error {
	first, err := s.Count()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, probeDeadline,
		fmt.Errorf("server %v was not asked within %v", s.Addr(), probeDeadline))
	defer cancel()
	tick := time.NewTicker(probePoll)
	defer tick.Stop()
	for {
		if n, err := s.Count(); err != nil || n > first {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
