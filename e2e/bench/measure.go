package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"shunt/e2e/lab"
)

// target is what one client asks in every round.
type target struct {
	place *place
	path  Path
	dst   netip.AddrPort
}

// targets of a number of services: every contender's own pod (what the node
// costs connections to no service), its first and its last service.
func (r *runner) targets(services int) []target {
	var all []target
	for _, p := range r.places {
		all = append(all, target{p, PathPod, netip.AddrPortFrom(p.server.Addr4(), backendPort)})
		if p.name != nameDirect {
			all = append(all, target{p, PathFirst, netip.AddrPortFrom(clusterIP(0), servicePort)},
				target{p, PathLast, netip.AddrPortFrom(clusterIP(services-1), servicePort)})
		}
	}
	return all
}

// measureConnections asks every target in every round, each round beginning
// with another, so that drift of the machine hits all alike.
func (r *runner) measureConnections(ctx context.Context, services int) error {
	all := r.targets(services)
	for _, p := range r.places {
		if err := yielding(p.server); err != nil {
			return err
		}
	}
	for round := -r.warmup(); round < r.Rounds; round++ {
		for i := range all {
			t := all[(round+r.warmup()+i)%len(all)]
			if err := r.ask(ctx, services, t, round); err != nil {
				return fmt.Errorf("%s, path %s: %w", t.place.name, t.path, err)
			}
			r.progress(1, "%d services: connections, round %d of %d", services, max(round+1, 0), r.Rounds)
		}
	}
	return nil
}

// putter takes what a target's part of a round gave.
type putter func(m Measure, values []float64, errors int)

// ask makes one target's part of a round; rounds below 0 warm up.
func (r *runner) ask(ctx context.Context, services int, t target, round int) error {
	put := func(m Measure, values []float64, errors int) {
		if round >= 0 {
			r.report.series(Key{services, t.place.name, t.path, m}).add(values, errors)
		}
	}
	one := oneOf(&r.cpus, round+r.warmup())
	if err := pin(one, t.place.client, t.place.server); err != nil {
		return err
	}
	err := r.exchanges(ctx, t, put)
	if err := errors.Join(err, pin(&r.cpus, t.place.client, t.place.server)); err != nil {
		return err
	}
	return r.burst(ctx, t, put)
}

// exchanges measures one after the other.
func (r *runner) exchanges(ctx context.Context, t target, put putter) error {
	for _, m := range []Measure{ExchangeTCP, ExchangeUDP} {
		network := "tcp4"
		if m == ExchangeUDP {
			network = "udp4"
		}
		s, err := t.place.client.Hammer(ctx, network, t.dst, lab.HammerOptions{Count: r.Exchanges, Records: true})
		if err = r.whole(ctx, err, s.Done == r.Exchanges); err != nil {
			return err
		}
		var connect, exchange []float64
		for _, rec := range s.Records {
			if rec.Errno == 0 {
				connect = append(connect, float64(rec.Connected-rec.Start)/1e3)
				exchange = append(exchange, float64(rec.End-rec.Start)/1e3)
			}
		}
		put(m, exchange, s.Done-s.Answered)
		if m == ExchangeTCP {
			put(ConnectTCP, connect, s.Done-s.Answered)
		}
	}
	return nil
}

// burst counts connections, and what CPU time the machine spends meanwhile.
func (r *runner) burst(ctx context.Context, t target, put putter) error {
	before, err := busyTime()
	if err != nil {
		return err
	}
	s, err := t.place.client.Hammer(ctx, "tcp4", t.dst, lab.HammerOptions{Duration: r.Burst, Concurrency: r.cpus.Count()})
	if err = r.whole(ctx, err, true); err != nil {
		return err
	}
	after, err := busyTime()
	if err != nil {
		return err
	}
	if s.Answered == 0 { // a rate of 0 is one; nothing can be said of a connection
		put(RateTCP, []float64{0}, s.Done)
		put(CPUTCP, nil, 0)
		return nil
	}
	put(RateTCP, []float64{float64(s.Answered) / s.Elapsed.Seconds()}, s.Done-s.Answered)
	put(CPUTCP, []float64{(after - before) * 1e6 / float64(s.Answered)}, 0)
	return nil
}

// whole passes an error on; a part that an interrupt cut short is one.
func (r *runner) whole(ctx context.Context, err error, whole bool) error {
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && !whole {
		err = errors.New("a round was cut short")
	}
	return err
}

// Limits of one update.
const (
	probeRate     = 2000 // exchanges a second: the time is known to half a millisecond
	probeDeadline = time.Minute
	probePoll     = 2 * time.Millisecond
)

// measureUpdates moves the moving service's endpoint to and fro, one contender
// after the other in every round.
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
			r.report.series(Key{Services: after.Services, Contender: p.name, Measure: Update}).
				add([]float64{took.Seconds() * 1e3}, 0)
			r.progress(updateCost*max(1, float64(after.Services)/3000), "%d services: update %d of %d", after.Services, round+1, r.Updates)
		}
	}
	return nil
}

// update moves the endpoint while a client asks the service, and gives the time
// from the start of the change to the end of the first connect() that led to
// the new endpoint.
func (r *runner) update(ctx context.Context, p *place, before, after *workload) (time.Duration, error) {
	do, err := p.update(before, after)
	if err != nil {
		return 0, err
	}
	dst := netip.AddrPortFrom(clusterIP(after.moving()), servicePort)
	from, to := p.server, p.next
	if before.Moved {
		from, to = to, from
	}
	probe := p.prober.StartHammer("tcp4", dst, lab.HammerOptions{Rate: probeRate, Duration: probeDeadline,
		Timeout: time.Second, Records: true})
	// The clock may only start once the client asks.
	err = r.answers(ctx, p.servers[from.Addr4()])
	start := lab.Monotonic()
	if err == nil {
		err = do(ctx)
	}
	if err == nil {
		err = r.answers(ctx, p.servers[to.Addr4()])
	}
	s, stopErr := probe.Stop()
	if err = r.whole(ctx, err, true); err != nil {
		return 0, err
	}
	if stopErr != nil {
		return 0, stopErr
	}
	return firstOf(s.Records, to.Name(), start)
}

// firstOf finds the first connection to a server since start.
func firstOf(records []lab.Record, server string, start int64) (time.Duration, error) {
	asked := false
	for _, rec := range records {
		asked = asked || rec.Start < start
		if rec.Server == server && rec.Errno == 0 {
			if !asked || rec.Connected < start {
				return 0, fmt.Errorf("%s answered before the change, or nobody asked then", server)
			}
			return time.Duration(rec.Connected - start), nil
		}
	}
	return 0, fmt.Errorf("none of %d connections was answered by %s", len(records), server)
}

// answers waits until a server has answered once more than now.
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
