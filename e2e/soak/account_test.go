// SPDX-License-Identifier: Apache-2.0

package soak_test

import (
	stdmaps "maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"shunt/e2e/rig"
	"shunt/maps"
)

// resources are what a process could leak.
type resources struct{ goroutines, files int }

func (r resources) within(o resources) bool {
	return r.goroutines <= o.goroutines && r.files <= o.files
}

// resources returns the daemon's counts, once two consecutive readings are equal.
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

// unleaked waits until the daemon has no more resources than when it was new, and returns
// what it has then.
func (s *soak) unleaked() (now resources) {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for now = s.resources(); !now.within(s.base) && time.Now().Before(deadline); now = s.resources() {
		time.Sleep(time.Second) // ended work may need a moment to release them
	}
	if !now.within(s.base) {
		s.t.Errorf("the daemon has %+v, and had %+v when it was new", now, s.base)
	}
	return now
}

// content is what the node holds without traffic.
type content struct {
	maps, links string
}

var ifindex = regexp.MustCompile(`_[0-9]+_`)

// quiet returns the content.
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

// sameAs waits until the content equals an earlier one, and no flow is left.
func (s *soak) sameAs(before content) {
	s.t.Helper()
	const flows = `shunt_map_entries{map="flows"}`
	var now content
	deadline := time.Now().Add(5 * time.Minute)
	for now = s.quiet(); (now != before || s.d.Metrics()[flows] > 0) && time.Now().Before(deadline); now = s.quiet() {
		time.Sleep(time.Second) // flows expire by time
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

// entries returns the number of entries of every hash map and trie of the daemon.
func (s *soak) entries() map[string]int {
	s.t.Helper()
	set, err := maps.Load(s.d.Root)
	s.check(err)
	defer set.Close()
	all := map[string]int{}
	for name, m := range set.All() {
		switch m.Type().String() {
		case "Hash", "LRUHash", "LPMTrie":
			n := 0
			for key, err := m.NextKeyBytes(nil); key != nil; key, err = m.NextKeyBytes(key) {
				s.check(err)
				n++
			}
			all[name] = n
		}
	}
	return all
}

// byTime are maps whose entries are kept for longer than a soak waits: session affinity has no
// code that removes entries.
var byTime = []string{"affinity"}

// atMost returns the entries when no map has more than before; after some minutes also when one
// has. The daemon removes entries of notes some 30 s after their age.
func (s *soak) atMost(before map[string]int) map[string]int {
	s.t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		after, more := s.entries(), false
		for name, n := range after {
			more = more || n > before[name] && !slices.Contains(byTime, name)
		}
		if !more || time.Now().After(deadline) {
			return after
		}
		time.Sleep(time.Second)
	}
}

// sum logs the result of the run.
func (s *soak) sum(rounds int, counts map[string]int, before map[string]int) {
	s.t.Helper()
	now, after := s.unleaked(), s.atMost(before)
	s.t.Logf("%d rounds in %d kinds of fault:", rounds, len(counts))
	for _, name := range slices.Sorted(stdmaps.Keys(counts)) {
		s.t.Logf("  %4d %s", counts[name], name)
	}
	s.t.Logf("%d exchanges, %d of them failed as the faults declare", s.asked(), s.excused())
	s.t.Logf("%d exchanges on long connections, %d of them failed as the faults declare", s.heldAsked, s.heldEnded)
	p := s.probes
	s.t.Logf("%d probes in %v, %.2f a second; %d of them had an answer", p.asked, p.active.Round(time.Second), p.rate(), p.answered)
	s.t.Logf("goroutines %d before, %d after; file descriptors %d before, %d after", s.base.goroutines, now.goroutines, s.base.files, now.files)
	for _, name := range slices.Sorted(stdmaps.Keys(after)) {
		s.t.Logf("map %s: entries %d before, %d after", name, before[name], after[name])
		if after[name] > before[name] && !slices.Contains(byTime, name) {
			s.t.Errorf("map %s has %d entries, and had %d at the beginning", name, after[name], before[name])
		}
	}
	if p.rate() < 0.95/probeEvery.Seconds() {
		s.t.Errorf("%.2f probes a second were asked, want %.0f", p.rate(), 1/probeEvery.Seconds())
	}
}
