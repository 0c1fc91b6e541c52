package soak_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"shunt/e2e/lab"
	"shunt/e2e/rig"
)

// resources are what a process could leak.
type resources struct{ goroutines, files int }

func (r resources) within(o resources) bool {
	return r.goroutines <= o.goroutines && r.files <= o.files
}

// resources reads what the daemon has, when two readings in a row are equal.
func (s *soak) resources() resources {
	s.t.Helper()
	read := func() resources {
		m := s.d.Metrics()
		return resources{int(m["go_goroutines"]), int(m["process_open_fds"])}
	}
	last := read()
	rig.Eventually(s.t, "the daemon comes to rest", func() bool {
		time.Sleep(100 * time.Millisecond) // between two readings
		now := read()
		same := now == last && now.goroutines > 0 && now.files > 0
		last = now
		return same
	})
	return last
}

// unleaked waits until the daemon has no more of anything than it had when it was new.
func (s *soak) unleaked() {
	s.t.Helper()
	var now resources
	deadline := time.Now().Add(time.Minute)
	for now = s.resources(); !now.within(s.base) && time.Now().Before(deadline); now = s.resources() {
		time.Sleep(time.Second) // what is over may take its time to end
	}
	if !now.within(s.base) {
		s.t.Errorf("the daemon has %+v, and had %+v when it was new", now, s.base)
	}
}

// content is what the node holds while nobody asks anything.
type content struct {
	maps, links string
}

var ifindex = regexp.MustCompile(`_[0-9]+_`)

// quiet reads it.
func (s *soak) quiet() content {
	s.t.Helper()
	c := content{maps: s.dump()}
	entries, err := os.ReadDir(filepath.Join(s.d.Root, "links"))
	s.check(err)
	var links []string
	for _, e := range entries {
		links = append(links, ifindex.ReplaceAllString(e.Name(), "_N_"))
	}
	slices.Sort(links)
	c.links = strings.Join(links, "\n")
	return c
}

// sameAs waits until the node holds what it held before, and no flow.
func (s *soak) sameAs(before content) {
	s.t.Helper()
	const flows = `shunt_map_entries{map="flows"}`
	var now content
	deadline := time.Now().Add(3 * time.Minute)
	for now = s.quiet(); (now != before || s.d.Metrics()[flows] > 0) && time.Now().Before(deadline); now = s.quiet() {
		time.Sleep(time.Second) // flows end by time
	}
	if now.maps != before.maps {
		s.t.Errorf("at the end the maps hold\n%s\nat the beginning\n%s", now.maps, before.maps)
	}
	if now.links != before.links {
		s.t.Errorf("at the end there are the links\n%s\nat the beginning\n%s", now.links, before.links)
	}
	if n, known := s.d.Metrics()[flows]; n != 0 || !known {
		s.t.Errorf("%v flows are left (%t)", n, known)
	}
}

// prober asks for the daemon's health twenty times a second.
type prober struct {
	d    *rig.Daemon
	stop chan struct{}
	done chan struct{}

	mu    sync.Mutex
	asked int
	bad   []badProbe
	downs [][2]int64 // times without a daemon
}

type badProbe struct {
	began, ended int64
	what         string
}

func newProber(d *rig.Daemon) *prober { return &prober{d: d} }

func (p *prober) begin() {
	p.stop, p.done = make(chan struct{}), make(chan struct{})
	go p.run(p.stop, p.done)
}

// end stops asking.
func (p *prober) end() {
	if p.stop != nil {
		close(p.stop)
		<-p.done
		p.stop = nil
	}
}

func (p *prober) run(stop, done chan struct{}) {
	defer close(done)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		path := []string{"/healthz", "/livez"}[i%2]
		began := lab.Monotonic()
		code, body, err := p.d.Get(rig.HealthzAddr, path)
		p.mu.Lock()
		p.asked++
		if err != nil || code != 200 {
			p.bad = append(p.bad, badProbe{began, lab.Monotonic(), fmt.Sprintf("%s: %d %v %.200s", path, code, err, body)})
		}
		p.mu.Unlock()
	}
}

func (p *prober) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// down says that there is no daemon to ask, until up.
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

// judge fails the test for each probe that failed while there was a daemon, unless the
// fault is one that probes are to show.
func (p *prober) judge(t *testing.T, n int, f fault) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	said := 0
	for _, b := range p.bad {
		explained := f.unhealthy && strings.HasPrefix(b.what, "/healthz: 503")
		for _, d := range p.downs {
			explained = explained || b.ended >= d[0] && b.began <= d[1]
		}
		if said++; !explained && said <= 3 {
			t.Errorf("round %d, %s: probe %s", n, f.name, b.what)
		}
	}
	p.bad, p.downs = nil, nil
}
