// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"shunt/lab"
)

// target is a destination to which one client sends requests in every round.
type target struct {
	place *place
	path  Path
	// client sends requests to dst, and server must answer.
	client, server *lab.Pod
	dst            netip.AddrPort
}

// established reports whether established connections are measured on this path too: only on
// one path of each kind, since the number of services does not affect them.
func (t *target) established() bool {
	switch t.path {
	case PathLast, PathNear, PathFar, PathNearLast, PathFarLast:
		return true
	case PathPod:
		return t.place.name == nameDirect
	}
	return false
}

// targets returns the targets at a size. The targets of a pod are, for every contender, the
// server's own address (the cost of connections without a service), the first and the last
// service. The targets of outside clients are node ports or, for direct, the pods' addresses.
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

// measureConnections asks every target in every round. Each round starts at the next
// target, so that drift of the machine affects all alike.
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

// putter records the result of a target's part of a round.
type putter func(m Measure, values []float64, errors int)

// ask runs one target's part of a round. Rounds below 0 warm up.
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

// exchanges measures one exchange at a time: each with its own socket, and for
// EstablishedTCP on one connection.
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

// burst counts connections, and the CPU time of the machine meanwhile.
func (r *runner) burst(ctx context.Context, t target, put putter) error {
	s, spent, err := r.hammer(ctx, t, false)
	if err != nil {
		return err
	}
	if s.Answered == 0 { // 0 is a valid rate, but there is no cost per connection
		put(RateTCP, []float64{0}, s.Done)
		put(CPUTCP, nil, 0)
		return nil
	}
	put(RateTCP, []float64{float64(s.Answered) / s.Elapsed.Seconds()}, s.Done-s.Answered)
	put(CPUTCP, []float64{spent * 1e6 / float64(s.Answered)}, 0)
	return nil
}

// packets counts exchanges on connections that are kept, and packets in both directions at
// the client.
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

// hammer asks with one thread per CPU for the duration of a burst. It returns the CPU time
// in seconds that the machine spent meanwhile.
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

// pour measures the throughput of one connection.
func (r *runner) pour(ctx context.Context, t target, put putter) error {
	p, err := t.client.Pour(ctx, t.dst, r.Burst, 1)
	if err = r.whole(ctx, err, true); err != nil {
		return err
	}
	put(Throughput, []float64{float64(p.Bytes) * 8 / 1e9 / p.Elapsed.Seconds()}, 0)
	return nil
}

// whole returns err, or an error if an interrupt ended the part early (whole is false).
func (r *runner) whole(ctx context.Context, err error, whole bool) error {
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && !whole {
		err = errors.New("a round was cut short")
	}
	return err
}
