// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	shuntmaps "shunt/maps"
)

// hooksResync is how often hooks are looked at. Nothing in the kernel tells of a link
// that was detached.
const hooksResync = 5 * time.Second

// The names beside those of the programs, in what Hooks reports.
const (
	// EffectCgroup: the hooks act on the cgroup that holds this node's pods.
	EffectCgroup = "cgroup"
	// EffectPins: what is in effect outlives the daemon.
	EffectPins = "pins"
	// EffectIngress and EffectEgress: the packet path's programs see the packets of
	// every device that they should.
	EffectIngress = "ingress"
	EffectEgress  = "egress"
)

// HooksOptions of NewHooks. All fields are needed.
type HooksOptions struct {
	Root string
	// MountBPFFS mounts a bpf file system again where Root's was unmounted.
	MountBPFFS bool
	Lock       *Lock
	Set        *shuntmaps.Set
	Maps       *shuntmaps.Kernel
	// FindCgroup returns the directory that hooks are attached to.
	FindCgroup func() (string, error)
	Programs   *Programs
	Packets    *PacketPath
	FlowSeed   uint64
	Memory     *shuntmaps.Memory
	Log        *zap.Logger
	// Repaired counts what was wrong and was put right, by the name.
	Repaired func(name string)
	// Lost is told when a hook was out of effect for a time: sockets may have been
	// connected past it.
	Lost func()
	// Earlier may be the zero value: there was no daemon before this one.
	Earlier Earlier
}

// Hooks keeps the socket path's programs in effect, and watches over the packet
// path's, which PacketPath keeps. It believes nothing that it did before: each pass
// asks the kernel for links, programs, cgroup and pins, puts right what somebody
// changed, and proves by calls of connect() and sendto() that the hooks act.
type Hooks struct {
	opts HooksOptions
	// podCgroup is in the name of pods' cgroups.
	podCgroup string
	started   chan struct{}
	poke      chan struct{}

	mu     sync.Mutex // orders passes
	cgroup string
	// first: no pass has ended yet, so that what is missing was not lost, and the programs
	// in effect are an earlier daemon's.
	first bool
	// missed are problems of the packet path that a look found since the last pass, and
	// PacketPath may have mended until the next.
	missed map[string]string

	stateMu sync.Mutex
	// problems are what the last pass left, by name; a name without a problem has "".
	// A map that was stored here is not written again.
	problems map[string]string
}

// NewHooks attaches nothing yet.
func NewHooks(opts HooksOptions) *Hooks {
	return &Hooks{opts: opts, podCgroup: podCgroup, started: make(chan struct{}), poke: make(chan struct{}, 1), first: true}
}

// Start puts the programs into effect and proves that they are. A problem of pins or of
// the cgroup's scope is logged and shown, and does not keep the rest from working.
func (h *Hooks) Start(ctx context.Context) error {
	problems := h.pass(ctx)
	for _, hook := range h.opts.Programs.hooks() {
		if text := problems[hook.pin]; text != "" {
			return fmt.Errorf("put program %s into effect in cgroup %s: %s", hook.pin, h.cgroup, text)
		}
	}
	if h.cgroup == "" {
		return errors.New(problems[EffectCgroup])
	}
	close(h.started)
	return nil
}

// Run looks again and again until the context ends, and returns nil then. Before Start it
// looks at what an earlier daemon left.
func (h *Hooks) Run(ctx context.Context) error {
	tick := time.NewTicker(hooksResync)
	defer tick.Stop()
	for {
		select {
		case <-h.started:
			h.pass(ctx)
		default:
			h.watchEarlier(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-h.poke:
		}
	}
}

// Last returns what was wrong when the hooks were last looked at, by name, with "" for
// what was in effect. Before Start that is what an earlier daemon left; nil: nothing.
func (h *Hooks) Last() map[string]string {
	h.stateMu.Lock()
	defer h.stateMu.Unlock()
	return h.problems
}

// Now is Last after another look, which mends nothing by itself: where something is
// wrong, a pass follows.
func (h *Hooks) Now() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := h.Last()
	if last == nil {
		return nil
	}
	if h.first {
		now := pinnedProblems(h.opts.Root)
		maps.Copy(now, h.packets())
		return h.changed(now, last)
	}
	now := maps.Clone(last)
	states, err := h.opts.Programs.look(h.opts.Root, h.cgroup)
	if err != nil {
		now[EffectCgroup], states = err.Error(), h.opts.Programs.lookHeld()
	}
	for _, s := range states {
		if s.out {
			now[s.hook] = s.problem
		} else if s.problem != "" {
			now[EffectPins] = s.hook + ": " + s.problem
		}
	}
	h.missed = h.packets()
	maps.Copy(now, h.missed)
	return h.changed(now, last)
}

// changed returns what a look found, and asks for a pass where that is news.
func (h *Hooks) changed(now, last map[string]string) map[string]string {
	if !maps.Equal(now, last) {
		select {
		case h.poke <- struct{}{}:
		default:
		}
	}
	return now
}

// pass looks at everything, mends what it can, and gives what is left.
func (h *Hooks) pass(ctx context.Context) map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := hooksPass{h: h, problems: map[string]string{EffectCgroup: "", EffectPins: ""}, found: map[string]string{}}
	p.findCgroup()
	p.keepPins()
	p.attach()
	p.prove(ctx)
	p.readScope()
	maps.Copy(p.problems, h.packets())
	maps.Copy(p.found, h.missed)
	h.missed = nil
	if ctx.Err() == nil { // else what failed says nothing
		h.report(&p)
		h.first = false
	}
	return p.problems
}

// packets returns the packet path's problems by direction. PacketPath mends them.
func (h *Hooks) packets() map[string]string {
	by := h.opts.Packets.look()
	return map[string]string{EffectIngress: by[ingress], EffectEgress: by[egress]}
}

// report logs what has changed, counts and stores it.
func (h *Hooks) report(p *hooksPass) {
	before := h.Last()
	for _, name := range slices.Sorted(maps.Keys(p.problems)) {
		now, found := p.problems[name], p.found[name]
		fields := []zap.Field{zap.String("hook", name), zap.String("cgroup", h.cgroup)}
		switch {
		case now != "" && before[name] != now:
			h.opts.Log.Error("not in effect as it should be, trying again", append(fields, zap.String("problem", now))...)
		case now == "" && found != "" && !h.first:
			h.opts.Log.Warn("was not in effect as it should be, and was put right", append(fields, zap.String("problem", found))...)
			h.opts.Repaired(name)
		case now == "" && before[name] != "":
			h.opts.Log.Info("in effect again", fields...)
			h.opts.Repaired(name)
		}
	}
	if p.lost && !h.first {
		h.opts.Lost()
	}
	h.stateMu.Lock()
	defer h.stateMu.Unlock()
	h.problems = p.problems
}

// hooksPass is one pass of Hooks.
type hooksPass struct {
	h *Hooks
	// problems are what is wrong at the end, found what was and was mended.
	problems, found map[string]string
	// lost: a hook was out of effect.
	lost bool
}

// findCgroup looks whether the cgroup is still there, and for where it is now.
func (p *hooksPass) findCgroup() {
	dir, err := p.h.opts.FindCgroup()
	if err != nil {
		p.problems[EffectCgroup] = err.Error()
		return
	}
	p.h.cgroup = dir
}

// keepPins puts back the directory, the maps and the seed on the bpf file system.
func (p *hooksPass) keepPins() {
	o := &p.h.opts
	var did []string
	moved, err := o.Lock.Keep(o.Root, o.MountBPFFS)
	if moved != "" {
		did = append(did, o.Root+": "+moved)
	}
	if err == nil {
		var maps []string
		maps, err = o.Set.KeepPins(o.Root)
		if len(maps) > 0 {
			did = append(did, "pins of maps were gone: "+strings.Join(maps, ", "))
		}
	}
	if err == nil {
		var seed bool
		if seed, err = keepFlowSeed(o.Root, o.FlowSeed); seed {
			did = append(did, "the pin of "+seedPin+" was gone")
		}
	}
	if err == nil {
		var memory bool
		if memory, err = o.Memory.KeepPin(o.Root); memory {
			did = append(did, "the pin of the daemon's memory was gone")
		}
	}
	if err != nil {
		p.problems[EffectPins] = err.Error()
	}
	p.found[EffectPins] = strings.Join(did, "; ")
}

// attach mends links and programs.
func (p *hooksPass) attach() {
	if p.h.cgroup == "" {
		return
	}
	states, err := p.mend()
	for _, hook := range p.h.opts.Programs.hooks() {
		p.problems[hook.pin] = ""
		if err != nil {
			p.problems[hook.pin] = err.Error()
		}
	}
	for _, s := range states {
		name := s.hook
		p.lost = p.lost || s.foundOut
		if !s.foundOut && !s.out && s.found+s.problem != "" { // in effect, and would end with the daemon
			name = EffectPins
			s.found, s.problem = join(s.hook, s.found), join(s.hook, s.problem)
		}
		if p.found[name] == "" {
			p.found[name] = s.found
		}
		if p.problems[name] == "" {
			p.problems[name] = s.problem
		}
	}
}

func (p *hooksPass) mend() ([]hookState, error) {
	programs := p.h.opts.Programs
	switch {
	case p.problems[EffectCgroup] != "": // there is nothing to attach to
		return programs.lookHeld(), nil
	case p.problems[EffectPins] != "": // there is no place for links
		return programs.look(p.h.opts.Root, p.h.cgroup)
	}
	states, err := programs.mend(p.h.opts.Root, p.h.cgroup)
	if err == nil {
		return states, nil
	}
	// Something may be in the place of the links' directory, which says nothing of hooks.
	looked, failed := programs.look(p.h.opts.Root, p.h.cgroup)
	if failed == nil {
		p.problems[EffectPins] = err.Error()
	}
	return looked, failed
}

// join puts what a text is about before it.
func join(what, text string) string {
	if text == "" {
		return ""
	}
	return what + ": " + text
}

// prove asks by system calls.
func (p *hooksPass) prove(ctx context.Context) {
	if p.h.cgroup == "" || p.problems[EffectCgroup] != "" {
		return
	}
	passed, err := prove(ctx, p.h.opts.Maps, p.h.cgroup)
	if err != nil && p.problems[EffectCgroup] == "" {
		p.problems[EffectCgroup] = err.Error()
	}
	for _, hook := range passed {
		if p.problems[hook] == "" {
			p.problems[hook] = "it is attached and does not act on processes below the cgroup: " +
				"another cgroup program may come first, or this is not the node's own cgroup root (--cgroup-root)"
		}
	}
}

// readScope compares the cgroup with where pods are.
func (p *hooksPass) readScope() {
	if p.h.cgroup == "" || p.problems[EffectCgroup] != "" {
		return
	}
	scope, err := scopeOf(p.h.cgroup, p.h.podCgroup)
	if err != nil {
		p.problems[EffectCgroup] = err.Error()
		return
	}
	p.problems[EffectCgroup] = scope.summary() // probes show it to everybody; status names a process
}
