// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	stdmaps "maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"shunt/maps"
)

// hooksResync is the interval at which the hooks are scanned. The kernel sends no notification
// when a link is detached.
const hooksResync = 5 * time.Second

// Names of the problems that Hooks reports, besides the names of hooks.
const (
	// EffectCgroup: the hooks act on the cgroup that contains this node's pods.
	EffectCgroup = "cgroup"
	// EffectPins: links, maps and seed are pinned, so that they outlive the daemon.
	EffectPins = "pins"
	// EffectIngress and EffectEgress: the packet path's programs are attached to every device
	// that they should be attached to.
	EffectIngress = "ingress"
	EffectEgress  = "egress"
)

// HooksOptions are the options of NewHooks. All fields but Earlier are needed.
type HooksOptions struct {
	Root string
	// MountBPFFS mounts a bpf file system again where that of Root was unmounted.
	MountBPFFS bool
	Lock       *Lock
	Set        *maps.Set
	Maps       *maps.Kernel
	// FindCgroup returns the directory of the cgroup to attach to.
	FindCgroup func() (string, error)
	Programs   *Programs
	Packets    *PacketPath
	FlowSeed   uint64
	Memory     *maps.Memory
	Log        *zap.Logger
	// Repaired is called for each repair, with the name of the problem that was repaired.
	Repaired func(name string)
	// Lost is called when a hook was out of effect for a time: sockets may have connected
	// without translation.
	Lost func()
	// Earlier is the zero value if there was no earlier daemon.
	Earlier Earlier
}

// Hooks keeps the socket path's programs attached. It also reports problems of the packet path's
// programs, which PacketPath keeps attached. Each scan reads links, programs, cgroup and pins
// from the kernel, repairs changes by others, and checks by connect() and sendto() that the hooks
// act.
type Hooks struct {
	opts HooksOptions
	// podCgroup is the part of a cgroup's path that identifies a pod's cgroup.
	podCgroup string
	started   chan struct{}
	poke      chan struct{}

	mu     sync.Mutex // held during a scan
	cgroup string
	// first reports whether no scan has ended yet. A missing program then counts as not attached
	// yet instead of lost, and the programs in effect are an earlier daemon's.
	first bool
	// missed are problems of the packet path that Now has found since the last scan. PacketPath
	// may have repaired them before the next scan.
	missed map[string]string

	stateMu sync.Mutex
	// problems are the problems that remain after the last scan, by name, with "" for a name
	// without a problem. The map is not modified after it is stored here.
	problems map[string]string
}

// NewHooks returns a Hooks that attaches nothing before Start.
func NewHooks(opts HooksOptions) *Hooks {
	return &Hooks{opts: opts, podCgroup: podCgroup, started: make(chan struct{}), poke: make(chan struct{}, 1), first: true}
}

// Start attaches the programs and checks that they act. It returns an error if a program is not
// in effect or there is no cgroup. Other problems, of pins or of the cgroup's scope, are logged
// and reported, and do not stop the daemon.
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

// Run scans every hooksResync until the context ends, and returns nil then. Before Start it
// watches the hooks of an earlier daemon.
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

// Last returns the problems that remain after the last scan, by name, with "" for a name without
// a problem. Before Start these are the problems of an earlier daemon's hooks; nil if it left
// none. The caller must not modify the map.
func (h *Hooks) Last() map[string]string {
	h.stateMu.Lock()
	defer h.stateMu.Unlock()
	return h.problems
}

// Now returns the problems that exist at this moment, in the form of Last. It repairs nothing,
// but wakes Run if the result differs from Last.
func (h *Hooks) Now() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := h.Last()
	if last == nil {
		return nil
	}
	if h.first {
		now := pinnedProblems(h.opts.Root)
		stdmaps.Copy(now, h.packets())
		return h.changed(now, last)
	}
	now := stdmaps.Clone(last)
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
	stdmaps.Copy(now, h.missed)
	return h.changed(now, last)
}

// changed returns now, and asks for a scan if now differs from last.
func (h *Hooks) changed(now, last map[string]string) map[string]string {
	if !stdmaps.Equal(now, last) {
		select {
		case h.poke <- struct{}{}:
		default:
		}
	}
	return now
}

// pass scans everything, repairs what it can, and returns the problems that are left.
func (h *Hooks) pass(ctx context.Context) map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := hooksScan{h: h, problems: map[string]string{EffectCgroup: "", EffectPins: ""}, found: map[string]string{}}
	p.findCgroup()
	p.keepPins()
	p.attach()
	p.prove(ctx)
	p.readScope()
	stdmaps.Copy(p.problems, h.packets())
	stdmaps.Copy(p.found, h.missed)
	h.missed = nil
	for dir, text := range h.opts.Packets.takeLost() {
		if text != "" {
			p.found[[directions]string{EffectIngress, EffectEgress}[dir]] = text
		}
	}
	if ctx.Err() == nil { // else failures only show that the scan was canceled
		h.report(&p)
		h.first = false
	}
	return p.problems
}

// packets returns the packet path's problems by direction. PacketPath repairs them.
func (h *Hooks) packets() map[string]string {
	by := h.opts.Packets.look()
	return map[string]string{EffectIngress: by[ingress], EffectEgress: by[egress]}
}

// report logs the changes, counts the repairs and stores the problems.
func (h *Hooks) report(p *hooksScan) {
	before := h.Last()
	for _, name := range slices.Sorted(stdmaps.Keys(p.problems)) {
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

// hooksScan is one scan of Hooks.
type hooksScan struct {
	h *Hooks
	// problems are the problems that remain at the end of the scan, found those that it found
	// before its repairs; both by name.
	problems, found map[string]string
	// lost reports whether a hook was out of effect.
	lost bool
}

// findCgroup finds the directory of the cgroup, which may have moved.
func (p *hooksScan) findCgroup() {
	dir, err := p.h.opts.FindCgroup()
	if err != nil {
		p.problems[EffectCgroup] = err.Error()
		return
	}
	p.h.cgroup = dir
}

// keepPins restores missing parts of the bpf file system: the directory, and the pins of maps,
// seed and the daemon's memory.
func (p *hooksScan) keepPins() {
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

// attach repairs links and programs.
func (p *hooksScan) attach() {
	if p.h.cgroup == "" {
		return
	}
	states, err := p.repair()
	for _, hook := range p.h.opts.Programs.hooks() {
		p.problems[hook.pin] = ""
		if err != nil {
			p.problems[hook.pin] = err.Error()
		}
	}
	for _, s := range states {
		name := s.hook
		p.lost = p.lost || s.foundOut
		if !s.foundOut && !s.out && s.found+s.problem != "" { // only its pin is wrong
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

func (p *hooksScan) repair() ([]hookState, error) {
	programs := p.h.opts.Programs
	switch {
	case p.problems[EffectCgroup] != "": // there is no cgroup to attach to
		return programs.lookHeld(), nil
	case p.problems[EffectPins] != "": // there is no directory for links
		return programs.look(p.h.opts.Root, p.h.cgroup)
	}
	states, err := programs.repair(p.h.opts.Root, p.h.cgroup)
	if err == nil {
		return states, nil
	}
	// repair fails if another file is at the path of the links' directory. The hooks may be in
	// effect nevertheless.
	looked, failed := programs.look(p.h.opts.Root, p.h.cgroup)
	if failed == nil {
		p.problems[EffectPins] = err.Error()
	}
	return looked, failed
}

// join prefixes a text with its subject, unless the text is empty.
func join(what, text string) string {
	if text == "" {
		return ""
	}
	return what + ": " + text
}

// prove checks by system calls that the hooks act.
func (p *hooksScan) prove(ctx context.Context) {
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

// readScope checks that pods are below the cgroup.
func (p *hooksScan) readScope() {
	if p.h.cgroup == "" || p.problems[EffectCgroup] != "" {
		return
	}
	scope, err := scopeOf(p.h.cgroup, p.h.podCgroup)
	if err != nil {
		p.problems[EffectCgroup] = err.Error()
		return
	}
	p.problems[EffectCgroup] = scope.summary() // without the name of a process: probes need no authentication
}
