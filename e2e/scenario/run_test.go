// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"shunt/lb"
	"shunt/maps"
	"shunt/maps/mapstest"
	"shunt/watcher"
)

var update = flag.Bool("update", false, "write what the maps hold into the files of testdata")

// sizes fit every scenario.
var sizes = maps.Sizes{Services: 64, Slots: 256, Backends: 64, Affinity: 16, Sources: 64, Flows: 16}

// modes are the methods to run a scenario. All have the same result.
var modes = []struct {
	name   string
	tables func(t *testing.T) maps.Tables
	// restart: every step has a new daemon.
	restart bool
}{
	{"fake", func(*testing.T) maps.Tables { return maps.NewFake(sizes) }, false},
	{"faults", withFaults, false},
	{"restarts", func(*testing.T) maps.Tables { return maps.NewFake(sizes) }, true},
	{"faults and restarts", withFaults, true},
	{"kernel", func(t *testing.T) maps.Tables { return mapstest.New(t, sizes) }, false},
	{"kernel and restarts", func(t *testing.T) maps.Tables { return mapstest.New(t, sizes) }, true},
}

// withFaults returns a fake of which every fifth write fails on average.
func withFaults(t *testing.T) maps.Tables {
	r := rand.New(rand.NewPCG(uint64(len(t.Name())), 5))
	return &maps.Faulty{Tables: maps.NewFake(sizes), Fail: func(string) error {
		if r.IntN(5) == 0 {
			return errors.New("injected fault")
		}
		return nil
	}}
}

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			about, sections := readFile(t, path)
			if *update {
				play(t, maps.NewFake(sizes), false, sections)
				writeFile(t, path, about, sections)
			}
			for _, m := range modes {
				t.Run(m.name, func(t *testing.T) { play(t, m.tables(t), m.restart, sections) })
			}
		})
	}
}

// player runs a scenario with one daemon's parts: the converter, the store, the loop.
type player struct {
	t         *testing.T
	tables    maps.Tables
	converter watcher.Converter
	objects   objects
	warnings  []string

	store  *lb.Store
	loop   *lb.Loop
	cancel context.CancelFunc
	ended  chan error
}

// objects is what a watcher would list.
type objects struct {
	services map[lb.ServiceName]*lb.Service
	slices   map[lb.SliceName]*lb.EndpointSlice
	node     *lb.Node
	addrs    []netip.Addr
}

// play runs the sections in a bubble of synctest, in which time passes at once.
func play(t *testing.T, tables maps.Tables, restart bool, sections []section) {
	synctest.Test(t, func(t *testing.T) {
		p := &player{t: t, tables: tables, objects: objects{
			services: map[lb.ServiceName]*lb.Service{}, slices: map[lb.SliceName]*lb.EndpointSlice{}}}
		p.start()
		for i := range sections {
			s := &sections[i]
			switch s.kind {
			case "node":
				p.node(s.text)
			case "addresses":
				p.addresses(s.text)
			case "apply":
				p.apply(s.text)
			case "delete":
				p.remove(s.text)
			case "warnings":
				p.expect(s, strings.Join(p.warnings, ""))
				p.warnings = nil
			case "maps":
				if restart {
					p.stop()
					p.start()
				}
				p.settle()
				p.expect(s, p.dump())
				p.sameAsFresh(s)
				if len(p.warnings) > 0 {
					t.Errorf("%s: warnings that no section expects:\n%s", s.title, strings.Join(p.warnings, ""))
				}
				p.warnings = nil
			default:
				t.Fatalf("section %q: no such kind", s.title)
			}
		}
		p.stop()
	})
}

// start makes a daemon that lists all existing objects first.
func (p *player) start() {
	p.store = lb.NewStore(time.Now)
	p.loop = lb.NewLoop(lb.LoopOptions{Store: p.store, Tables: p.tables, Log: zap.NewNop(), Now: time.Now, NodeName: "me"})
	if _, err := p.loop.Adopt(); err != nil {
		p.t.Fatal(err)
	}
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(p.t.Context())
	p.ended = make(chan error, 1)
	go func() { p.ended <- p.loop.Run(ctx) }()
	for _, svc := range p.objects.services {
		p.store.SetService(svc)
	}
	for _, sl := range p.objects.slices {
		p.store.SetSlice(sl)
	}
	p.store.SetNode(p.objects.node)
	if p.objects.addrs != nil {
		p.store.SetNodeAddrs(p.objects.addrs)
	}
	p.store.SetSynced()
}

// stop ends the loop at any point of its work.
func (p *player) stop() {
	p.cancel()
	if err := <-p.ended; err != nil {
		p.t.Error(err)
	}
}

// settle waits until all objects are in the maps.
func (p *player) settle() {
	p.t.Helper()
	deadline := time.Now().Add(time.Hour)
	for synctest.Wait(); ; synctest.Wait() {
		st := p.loop.Status()
		// LastSync: the remains of an earlier daemon are gone, too.
		if st.Synced && !st.LastSync.IsZero() && st.QueuedSince.IsZero() && st.Err == nil && st.Failing == 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("not in the maps after an hour: %v, %d services fail: %v", st.Err, st.Failing, st.Problems.List)
		}
		time.Sleep(time.Second)
	}
}

func (p *player) dump() string { p.t.Helper(); return p.read().Text() }

func (p *player) read() *maps.Dump {
	p.t.Helper()
	d, err := p.tables.Dump()
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

func (p *player) expect(s *section, got string) {
	p.t.Helper()
	if *update {
		s.text = got
	}
	if got != s.text {
		p.t.Errorf("%s: got\n%s\nwant\n%s", s.title, got, s.text)
	}
}

// sameAsFresh checks that the maps equal those of a daemon that starts now with empty maps:
// earlier objects have left nothing.
func (p *player) sameAsFresh(s *section) {
	p.t.Helper()
	fresh := &player{t: p.t, tables: maps.NewFake(sizes), objects: p.objects}
	fresh.start()
	fresh.settle()
	if got, want := p.read().Lasting().Text(), fresh.read().Lasting().Text(); got != want {
		p.t.Errorf("%s: the maps hold\n%s\na fresh daemon's hold\n%s", s.title, got, want)
	}
	fresh.stop()
}

func (p *player) note(warnings []watcher.Warning) {
	for _, w := range warnings {
		p.warnings = append(p.warnings, fmt.Sprintf("%s %s/%s %s: %s\n", w.Kind, w.Namespace, w.Name, w.Field, w.Problem))
	}
}

// apply sets objects as watchers do: objects of other proxies are deleted.
func (p *player) apply(text string) {
	p.t.Helper()
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var head struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			p.t.Fatalf("%v in\n%s", err, doc)
		}
		switch head.Kind {
		case "Service":
			var obj v1.Service
			p.unmarshal(doc, &obj)
			svc, warnings := p.converter.Service(&obj)
			p.note(warnings)
			if svc == nil {
				p.deleteService(lb.ServiceName{Namespace: obj.Namespace, Name: obj.Name})
				continue
			}
			p.objects.services[svc.Name] = svc
			p.store.SetService(svc)
		case "EndpointSlice":
			var obj discoveryv1.EndpointSlice
			p.unmarshal(doc, &obj)
			sl, warnings := p.converter.Slice(&obj)
			p.note(warnings)
			if sl == nil {
				p.deleteSlice(lb.SliceName{Namespace: obj.Namespace, Name: obj.Name})
				continue
			}
			p.objects.slices[sl.Name] = sl
			p.store.SetSlice(sl)
		default:
			p.t.Fatalf("kind %q in\n%s", head.Kind, doc)
		}
	}
}

func (p *player) unmarshal(doc string, to any) {
	p.t.Helper()
	if err := yaml.UnmarshalStrict([]byte(doc), to); err != nil {
		p.t.Fatalf("%v in\n%s", err, doc)
	}
}

func (p *player) deleteService(name lb.ServiceName) {
	delete(p.objects.services, name)
	p.store.DeleteService(name)
}

func (p *player) deleteSlice(name lb.SliceName) {
	delete(p.objects.slices, name)
	p.store.DeleteSlice(name)
}

func (p *player) remove(text string) {
	p.t.Helper()
	for line := range strings.Lines(text) {
		kind, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		namespace, name, ok := strings.Cut(name, "/")
		switch {
		case !ok:
			p.t.Fatalf("delete %q", line)
		case kind == "Service":
			p.deleteService(lb.ServiceName{Namespace: namespace, Name: name})
		case kind == "EndpointSlice":
			p.deleteSlice(lb.SliceName{Namespace: namespace, Name: name})
		default:
			p.t.Fatalf("delete %q", line)
		}
	}
}

func (p *player) node(text string) {
	p.t.Helper()
	var obj v1.Node
	p.unmarshal(text, &obj)
	n, warnings := p.converter.Node(&obj)
	p.note(warnings)
	p.objects.node = n
	p.store.SetNode(n)
}

func (p *player) addresses(text string) {
	p.t.Helper()
	p.objects.addrs = []netip.Addr{}
	for _, a := range strings.Fields(text) {
		p.objects.addrs = append(p.objects.addrs, netip.MustParseAddr(a))
	}
	p.store.SetNodeAddrs(p.objects.addrs)
}
