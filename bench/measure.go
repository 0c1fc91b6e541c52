// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"shunt/lab"
)

// target is what one client asks in every round.
type target struct {
	place *place
	path  Path
	// client asks dst, and server is to answer.
	client, server *lab.Pod
	dst            netip.AddrPort
}

// established says whether connections that are there already are measured too:
// of each kind of path one, since they do not care how many services there are.
func (t *target) established() bool {
	switch t.path {
	case PathLast, PathNear, PathFar, PathNearLast, PathFarLast:
		return true
	case PathPod:
		return t.place.name == nameDirect
	}
	return false
}

// targets at a size: from a pod every contender's own pod (what
// the node costs connections to no service), its first and its last service;
// from outside node ports, or with direct the pods behind them.
func (r *runner) targets(size Size) []target {
	var all []target
	for _, p := range r.places {
		add := func(path Path, client, server *lab.Pod, dst netip.Addr, port uint16) {
			all = append(all, target{p, path, client, server, netip.AddrPortFrom(dst, port)})
		}
		add(PathPod, p.client, p.server, serverAddr, backendPort)
		if p.name == nameDirect {
			add(PathNear, r.out.routed, p.server, serverAddr, backendPort)
			add(PathFar, r.out.routed, r.out.server, r.out.server.Addr4(), backendPort)
			continue
		}
		add(PathFirst, p.client, p.server, clusterIP(0), servicePort)
		add(PathLast, p.client, p.server, clusterIP(size.Services-1), servicePort)
		w := workload{Size: size}
		at := p.node.Addr4()
		add(PathNearFirst, r.out.client, p.server, at, w.nodePort(0))
		add(PathNearLast, r.out.client, p.server, at, w.nodePort(size.Services-1))
		add(PathFarFirst, r.out.client, r.out.server, at, w.nodePort(1))
		add(PathFarLast, r.out.client, r.out.server, at, w.nodePort(size.Services-2))
	}
	return all
}

// measureConnections asks every target in every round, each round beginning
// with another, so that drift of the machine hits all alike.
func (r *runner) measureConnections(ctx context.Context, size Size) error {
	all := r.targets(size)
	for _, t := range all {
		if err := yielding(t.server); err != nil {
			return err
		}
	}
	for round := -r.warmup(); round < r.Rounds; round++ {
		for i := range all {
			t := all[(round+r.warmup()+i)%len(all)]
			if err := r.ask(ctx, size, t, round); err != nil {
				return fmt.Errorf("%s, path %s: %w", t.place.name, t.path, err)
			}
			r.progress(1, "%v: connections, round %d of %d", size, max(round+1, 0), r.Rounds)
		}
	}
	return nil
}

// putter takes what a target's part of a round gave.
type putter func(m Measure, values []float64, errors int)

// ask makes one target's part of a round; rounds below 0 warm up.
func (r *runner) ask(ctx context.Context, size Size, t target, round int) error {
	put := func(m Measure, values []float64, errors int) {
		if round >= 0 {
			r.report.series(Key{size, t.place.name, t.path, m}).add(values, errors)
		}
	}
	one := oneOf(&r.cpus, round+r.warmup())
	if err := pin(one, t.client, t.server); err != nil {
		return err
	}
	err := r.exchanges(ctx, t, put)
	if err := errors.Join(err, pin(&r.cpus, t.client, t.server)); err != nil {
		return err
	}
	if err := r.burst(ctx, t, put); err != nil || !t.established() {
		return err
	}
	return errors.Join(r.packets(ctx, t, put), r.pour(ctx, t, put))
}

// exchanges measures one after the other: with a socket each, and where that is
// asked for on one connection.
func (r *runner) exchanges(ctx context.Context, t target, put putter) error {
	for _, m := range []Measure{ExchangeTCP, ExchangeUDP, EstablishedTCP} {
		o := lab.HammerOptions{Count: r.Exchanges, Records: true, Keep: m == EstablishedTCP}
		if o.Keep && !t.established() {
			continue
		}
		network := "tcp4"
		if m == ExchangeUDP {
			network = "udp4"
		}
		s, err := t.client.Hammer(ctx, network, t.dst, o)
		if err = r.whole(ctx, err, s.Done == r.Exchanges || o.Keep); err != nil {
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
	s, spent, err := r.hammer(ctx, t, false)
	if err != nil {
		return err
	}
	if s.Answered == 0 { // a rate of 0 is one; nothing can be said of a connection
		put(RateTCP, []float64{0}, s.Done)
		put(CPUTCP, nil, 0)
		return nil
	}
	put(RateTCP, []float64{float64(s.Answered) / s.Elapsed.Seconds()}, s.Done-s.Answered)
	put(CPUTCP, []float64{spent * 1e6 / float64(s.Answered)}, 0)
	return nil
}

// packets does the same on connections that are kept, and counts the packets of
// both directions where the client sees them.
func (r *runner) packets(ctx context.Context, t target, put putter) error {
	before, err := packetsOf(t.client)
	if err != nil {
		return err
	}
	s, spent, err := r.hammer(ctx, t, true)
	if err != nil {
		return err
	}
	after, err := packetsOf(t.client)
	if err != nil {
		return err
	}
	put(CPUPacket, []float64{spent * 1e6 / (after - before)}, s.Done-s.Answered)
	return nil
}

// hammer asks with a thread for each CPU for the time of a burst, and gives the
// CPU time in seconds that the machine spent meanwhile.
func (r *runner) hammer(ctx context.Context, t target, keep bool) (s lab.Summary, spent float64, err error) {
	before, err := busyTime()
	if err != nil {
		return s, 0, err
	}
	s, err = t.client.Hammer(ctx, "tcp4", t.dst, lab.HammerOptions{Duration: r.Burst, Concurrency: r.cpus.Count(), Keep: keep})
	if err = r.whole(ctx, err, true); err != nil {
		return s, 0, err
	}
	after, err := busyTime()
	return s, after - before, err
}

// pour measures what one connection brings across.
func (r *runner) pour(ctx context.Context, t target, put putter) error {
	p, err := t.client.Pour(ctx, t.dst, r.Burst, 1)
	if err = r.whole(ctx, err, true); err != nil {
		return err
	}
	put(Throughput, []float64{float64(p.Bytes) * 8 / 1e9 / p.Elapsed.Seconds()}, 0)
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
