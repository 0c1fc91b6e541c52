// SPDX-License-Identifier: Apache-2.0

package soak_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

const (
	// probeEvery is the interval of probes.
	probeEvery = 50 * time.Millisecond
	// probesAtOnce is how many probes may wait for their answer. A single worker reached 12
	// a second: with the race detector on both sides an answer takes up to 80 ms.
	probesAtOnce = 16
	// podProbes is the address of the probes of the daemon's pod.
	podProbes = "127.0.0.1:10266"
)

// probed are the addresses and paths to probe, in turn.
var probed = [...]struct{ addr, path string }{
	{rig.HealthzAddr, "/healthz"}, {rig.HealthzAddr, "/livez"}, {podProbes, "/livez"}, {podProbes, "/readyz"},
}

// prober probes the daemon's health twenty times a second. A running daemon answers 200
// during every fault.
type prober struct {
	d *rig.Daemon
	// stop ends the workers. Nil means that none run.
	stop    chan struct{}
	workers sync.WaitGroup

	mu sync.Mutex
	// began is when the workers started. due is the number of probes since then.
	began time.Time
	due   int
	// asked is the number of all probes, answered of those with an answer, and active the
	// time with workers.
	asked, answered int
	active          time.Duration
	bad             []badProbe
	downs           [][2]int64 // times without a daemon
}

type badProbe struct {
	began, ended int64
	what         string
}

func newProber(d *rig.Daemon) *prober { return &prober{d: d} }

func (p *prober) begin() {
	p.stop, p.began, p.due = make(chan struct{}), time.Now(), 0
	for range probesAtOnce {
		p.workers.Go(func() { p.work(p.stop) })
	}
}

// end stops the workers. No connection to the daemon is left.
func (p *prober) end() {
	if p.stop == nil {
		return
	}
	close(p.stop)
	p.workers.Wait()
	p.stop = nil
	p.active += time.Since(p.began)
}

// work takes the next probe, waits until it is due, and sends it. Late probes are sent at
// once, so that slow answers do not lower the rate.
func (p *prober) work(stop chan struct{}) {
	for {
		n, at := p.next()
		select {
		case <-stop:
			return
		case <-time.After(time.Until(at)):
		}
		p.ask(n)
	}
}

func (p *prober) next() (n int, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.due++
	return p.due, p.began.Add(time.Duration(p.due) * probeEvery)
}

func (p *prober) ask(n int) {
	what := probed[n%len(probed)]
	began := lab.Monotonic()
	code, body, err := p.d.Get(what.addr, what.path)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if err == nil {
		p.answered++
	}
	if err != nil || code != 200 {
		p.bad = append(p.bad, badProbe{began, lab.Monotonic(), fmt.Sprintf("%s: %d %v %.200s", what.path, code, err, body)})
	}
}

// rate returns the number of probes per second. There must be no workers.
func (p *prober) rate() float64 { return float64(p.asked) / p.active.Seconds() }

// down records that there is no daemon to probe, until up.
func (p *prober) down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.downs = append(p.downs, [2]int64{lab.Monotonic(), 1<<63 - 1})
}

func (p *prober) up() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.downs[len(p.downs)-1][1] = lab.Monotonic()
}

// judge fails the test for each probe that failed while a daemon ran.
func (p *prober) judge(t *testing.T, n int, f fault) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	said := 0
	for _, b := range p.bad {
		explained := false
		for _, d := range p.downs {
			explained = explained || b.ended >= d[0] && b.began <= d[1]
		}
		if explained {
			continue
		}
		if said++; said <= 3 {
			t.Errorf("round %d, %s: probe %s", n, f.name, b.what)
		}
	}
	p.bad, p.downs = nil, nil
}
