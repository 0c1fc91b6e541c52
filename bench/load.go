// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"shunt/lab"
)

// Limits of a load.
const (
	// loadBudget is the time after which a contender is not loaded again for a number of
	// services. The report has the counts.
	loadBudget = 30 * time.Second
	// tryTime bounds one try to reach a service: a SYN sent before the service works gets
	// no answer.
	tryTime = 50 * time.Millisecond
	// answerDeadline bounds the time until all services answer.
	answerDeadline = 10 * time.Minute
	// sampleSize is how many services are asked while the clock runs, spread over all of
	// them, and proofSize after it has stopped.
	sampleSize, proofSize = 100, 10_000
)

// errTooLong: services did not all answer within answerDeadline.
var errTooLong = fmt.Errorf("not all services answered within %v", answerDeadline)

// loadAll loads every contender Loads times, or until loadBudget is spent, in turn. All
// contenders are loaded when it returns. A contender that exceeds answerDeadline is not
// measured at this size and all following sizes.
func (r *runner) loadAll(ctx context.Context, size Size, loads map[*place]*workload) error {
	spent := map[*place]time.Duration{}
	for i := range r.Loads {
		for _, p := range slices.Clone(r.places) {
			if spent[p] > loadBudget {
				r.progress(loadCost*size.weight(), "%v: enough loads of %s", size, p.name)
				continue
			}
			start := time.Now()
			if i > 0 {
				if err := p.unload(ctx); err != nil {
					return fmt.Errorf("%s: unload: %w", p.name, err)
				}
			}
			err := r.measureLoad(ctx, p, loads[p], i == 0)
			if errors.Is(err, errTooLong) {
				err = r.giveUp(ctx, p, size)
			}
			if err != nil {
				return fmt.Errorf("%s: load: %w", p.name, err)
			}
			spent[p] += time.Since(start)
		}
	}
	return nil
}

// giveUp removes a contender from the run, and notes that in the report.
func (r *runner) giveUp(ctx context.Context, p *place, size Size) error {
	r.report.NotMeasured = append(r.report.NotMeasured, NotMeasured{fmt.Sprintf("%s from %v on", p.name, size), errTooLong.Error()})
	r.places = slices.DeleteFunc(r.places, func(x *place) bool { return x == p })
	p.closeRelay()
	return p.unload(ctx)
}

// measureLoad puts the workload into effect, and sends requests to services until all answer.
func (r *runner) measureLoad(ctx context.Context, p *place, w *workload, first bool) error {
	do, err := p.load(ctx, w)
	if err != nil || do == nil {
		return err
	}
	before, err := kernelMemory()
	if err != nil {
		return err
	}
	start := lab.Monotonic()
	if err := do(ctx); err != nil {
		return err
	}
	end, err := p.await(ctx, spread(w.Services, sampleSize))
	if err != nil {
		return err
	}
	after, err := kernelMemory()
	if err != nil {
		return err
	}
	if first {
		if _, err := p.await(ctx, spread(w.Services, proofSize)); err != nil {
			return err
		}
	}
	if err := p.rest(ctx); err != nil {
		return err
	}
	if err := r.provePaths(p, w.Size); err != nil {
		return err
	}
	own, err := p.memory()
	if err != nil {
		return err
	}
	key := Key{Size: w.Size, Contender: p.name}
	put := func(m Measure, v float64) {
		key.Measure = m
		r.report.series(key).add([]float64{v}, 0)
	}
	put(Load, float64(end-start)/1e6)
	if own.kernel < 0 {
		own.kernel = after - before
	}
	put(KernelMem, own.kernel)
	if own.process >= 0 {
		put(ProcessMem, own.process)
	}
	r.progress(loadCost*w.weight(), "%v: load %s", w.Size, p.name)
	return nil
}

// await asks services of the place until each has answered. It returns the time at which
// the last one did.
func (p *place) await(ctx context.Context, services []int) (int64, error) {
	if w, ok := p.contender.(*subscriber); ok {
		var cancel context.CancelFunc
		ctx, cancel = w.ended(ctx)
		defer cancel()
	}
	var dsts []netip.AddrPort
	for _, i := range services {
		dsts = append(dsts, netip.AddrPortFrom(clusterIP(i), servicePort))
	}
	start := lab.Monotonic()
	at, err := p.prober.Await(ctx, "tcp4", dsts, tryTime, answerDeadline)
	switch cause := context.Cause(ctx); {
	case err == nil:
	case cause != nil:
		err = cause // why no service answers
	case lab.Monotonic()-start >= answerDeadline.Nanoseconds():
		err = errTooLong
	}
	return at, err
}

// provePaths makes one exchange over every path to be measured.
func (r *runner) provePaths(p *place, size Size) error {
	for _, t := range r.targets(size) {
		if t.place != p {
			continue
		}
		for _, network := range []string{"tcp4", "udp4"} {
			if a := t.client.Ask(network, t.dst); a.Err != nil {
				return fmt.Errorf("%s, %s at %v does not answer: %w", t.path.words(), network, t.dst, a.Err)
			} else if a.Server != t.server.Name() {
				return fmt.Errorf("%s, %s at %v is answered by %s, not by %s", t.path.words(), network, t.dst, a.Server, t.server.Name())
			}
		}
	}
	return nil
}

// spread returns size numbers of services, or fewer if there are fewer: the first, the
// last, and others at equal distances. size must be at least 2.
func spread(services, size int) []int {
	size = min(size, services)
	all := make([]int, size)
	for i := range all {
		all[i] = i * (services - 1) / (size - 1)
	}
	return all
}
