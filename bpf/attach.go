// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hookState is the result of one scan of one hook.
type hookState struct {
	hook string
	// found is the problem that the scan found, or empty. foundOut reports whether the program
	// was out of effect then.
	found    string
	foundOut bool
	// problem is the problem that remains after the scan, or empty.
	problem string
	// out reports whether the program is out of effect after the scan.
	out bool
}

// Attach attaches the programs to the cgroup, and pins the links below root. The programs then
// act on processes of this cgroup and of all its descendants. A link that an earlier daemon
// pinned for the same cgroup is updated in place, so that the hook is never without a program.
// Correct links are not changed. The error has a line for every hook with a problem.
func (p *Programs) Attach(root, cgroup string) error {
	states, err := p.repair(root, cgroup)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range states {
		if s.problem != "" {
			errs = append(errs, fmt.Errorf("attach program %s to cgroup %s: %s", s.hook, cgroup, s.problem))
		}
	}
	return errors.Join(errs...)
}

// repair scans all hooks and repairs those with a problem.
func (p *Programs) repair(root, cgroup string) ([]hookState, error) {
	dir := filepath.Join(root, linkDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory %s for pinned links: %w", dir, err)
	}
	return p.each(cgroup, func(h hook, at *os.File, want hookWant) hookState {
		s := hookState{hook: h.pin}
		plan := planHook(p.view(h, dir, at, want), want)
		s.found, s.foundOut = plan.wrong, plan.out
		if plan == (hookPlan{}) {
			return s
		}
		if err := p.carryOut(plan, h, filepath.Join(dir, h.pin), cgroup); err != nil {
			s.problem = err.Error()
		}
		if again := planHook(p.view(h, dir, at, want), want); again.wrong != "" {
			s.out = again.out
			if s.problem == "" {
				s.problem = "repaired, and wrong again at once: " + again.wrong
			}
		}
		return s
	})
}

// look scans all hooks and repairs none.
func (p *Programs) look(root, cgroup string) ([]hookState, error) {
	return p.each(cgroup, func(h hook, at *os.File, want hookWant) hookState {
		plan := planHook(p.view(h, filepath.Join(root, linkDir), at, want), want)
		return hookState{hook: h.pin, problem: plan.wrong, out: plan.out}
	})
}

// lookHeld scans only the links that this process has open. It is used if the cgroup can't be
// opened.
func (p *Programs) lookHeld() (all []hookState) {
	for _, h := range p.hooks() {
		s := hookState{hook: h.pin}
		if l := p.links[h.pin]; l == nil || viewLink(l).cgroup == 0 {
			s.problem, s.out = "it is attached to no cgroup", true
		}
		all = append(all, s)
	}
	return all
}

// each calls do for every hook, in the order of hooks, with the opened cgroup and the state
// that the hook should have.
func (p *Programs) each(cgroup string, do func(hook, *os.File, hookWant) hookState) ([]hookState, error) {
	at, err := os.Open(cgroup)
	if err != nil {
		return nil, fmt.Errorf("open the cgroup to attach to: %w", err)
	}
	defer at.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(at.Fd()), &st); err != nil {
		return nil, fmt.Errorf("look at cgroup %s: %w", cgroup, err)
	}
	var all []hookState
	for _, h := range p.hooks() {
		prog, err := newLoadedProgram(h.prog)
		if err != nil {
			return nil, err
		}
		all = append(all, do(h, at, hookWant{cgroup: st.Ino, program: prog.id}))
	}
	return all, nil
}

// view reads a hook's state from the kernel.
func (p *Programs) view(h hook, dir string, cgroup *os.File, want hookWant) (v hookView) {
	if l := p.links[h.pin]; l != nil {
		v.held = viewLink(l)
	}
	if l, err := link.LoadPinnedLink(filepath.Join(dir, h.pin), nil); err == nil {
		v.pinned = viewLink(l)
		l.Close()
	}
	there, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: h.attach})
	v.listed = err == nil && slices.ContainsFunc(there.Programs, func(a link.AttachedProgram) bool { return a.ID == want.program })
	return v
}

func viewLink(l link.Link) linkView {
	info, err := l.Info()
	if err != nil {
		return linkView{}
	}
	return linkView{id: info.ID, cgroup: linkCgroup(l), program: info.Program}
}

// carryOut executes a plan.
func (p *Programs) carryOut(plan hookPlan, h hook, pin, cgroup string) error {
	if plan.take {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			return fmt.Errorf("open the pinned link of an earlier daemon: %w", err)
		}
		p.hold(h, l)
	}
	if plan.attach {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: h.attach, Program: h.prog})
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: another program is attached there or above that wants to be alone; `bpftool cgroup tree` shows it", err)
		}
		if err != nil {
			return err
		}
		if old := p.links[h.pin]; old != nil { // the new link is in effect now
			_ = detach(old) // the error is ignored: it may be detached already
		}
		p.hold(h, l)
	}
	if plan.update {
		if err := p.links[h.pin].Update(h.prog); err != nil {
			return fmt.Errorf("replace the link's program: %w", err)
		}
	}
	if plan.pin {
		return pinLink(p.links[h.pin], pin)
	}
	return nil
}

func (p *Programs) hold(h hook, l link.Link) {
	if old := p.links[h.pin]; old != nil {
		old.Close()
	}
	p.links[h.pin] = l
}

// pinLink pins a link. If another link is pinned at the path, pinLink detaches that link: it has
// a program of shunt for another cgroup, or for a removed one.
func pinLink(l link.Link, pin string) error {
	if old, err := link.LoadPinnedLink(pin, nil); err == nil {
		if viewLink(old).id != viewLink(l).id {
			_ = detach(old) // the error is ignored: it may be detached already
		}
		old.Close()
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the file at the path of the link's pin: %w", err)
	}
	if err := l.Unpin(); err != nil { // the link object retains the path of its last pin, which Pin would rename
		return fmt.Errorf("pin the link: %w", err)
	}
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin the link: %w", err)
	}
	return nil
}

// detach detaches a link at once. The kernel also detaches a link without pins and open file
// descriptors, but only some time after the last of them is gone. A link of a removed cgroup is
// detached already.
func detach(l link.Link) error {
	if linkCgroup(l) == 0 {
		return nil
	}
	return l.Detach()
}

// cgroupID returns the id of a cgroup v2 directory: its inode number.
func cgroupID(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("look at cgroup %s: %w", dir, err)
	}
	return st.Ino, nil
}

// linkCgroup returns the id of the cgroup that a link is attached to; 0 if the kernel does not
// report it, or the cgroup was removed.
func linkCgroup(l link.Link) uint64 {
	info, err := l.Info()
	if err != nil {
		return 0
	}
	cg := info.Cgroup()
	if cg == nil {
		return 0
	}
	return cg.CgroupId
}
