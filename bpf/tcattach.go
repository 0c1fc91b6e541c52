// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// direction is the direction of a device's packets that a program sees: packets that arrive
// (ingress), or packets that leave (egress).
type direction int

const (
	ingress direction = iota
	egress
	directions = 2
)

// attachOrder and detachOrder are the orders in which the programs of the two directions are
// attached and detached, on all devices. Only an egress program, perhaps of another device,
// translates the replies to packets that an ingress program has translated. So egress programs
// are attached first, and detached last.
var (
	attachOrder = [directions]direction{egress, ingress}
	detachOrder = [directions]direction{ingress, egress}
)

// String returns the name that `tc` uses.
func (d direction) String() string { return [directions]string{"ingress", "egress"}[d] }

func parseDirection(s string) (direction, bool) {
	i := slices.Index([]string{ingress.String(), egress.String()}, s)
	return direction(i), i >= 0
}

// point is a direction of a device: where a program can be attached.
type point struct {
	index int // of the device, in the calling thread's network namespace
	dir   direction
}

// attachment is a program of shunt at a point, as it was found.
type attachment struct {
	point
	why     Why
	program ebpf.ProgramID
	// inEffect reports whether the program runs for packets of the device that has the index now.
	inEffect bool
	// handle identifies the attachment for its method: a pin's path (tcx), a filter (clsact).
	handle any
}

// way is a method of attaching programs to devices: tcx or clsact. Methods work on the network
// namespace of the calling thread. An attachment outlives the process.
type way interface {
	String() string
	// list returns the attachments of shunt's programs, including those that are no longer in
	// effect.
	list() ([]attachment, error)
	// attach attaches the program. old is the attachment at this point that is in effect, or nil.
	// attach replaces old in place, so that the point is never without a program.
	attach(at point, why Why, prog loadedProgram, old *attachment) error
	// remove detaches a program and removes its pin or filter.
	remove(attachment) error
}

// tcx attaches by TCX links (Linux 6.6), which are pinned in dir. A pin's name has the point
// and the reason: tcx_DIRECTION_IFINDEX_WHY.
type tcx struct{ dir string }

var _ way = tcx{}

// String returns the name of the method in shunt's output.
func (tcx) String() string { return "TCX" }

const tcxPrefix = "tcx"

func (t tcx) pin(at point, why Why) string {
	return filepath.Join(t.dir, fmt.Sprintf("%s_%s_%d_%s", tcxPrefix, at.dir, at.index, why))
}

func parsePin(name string) (at point, why Why, ok bool) {
	parts := strings.Split(name, "_")
	if len(parts) != 4 || parts[0] != tcxPrefix {
		return at, "", false
	}
	dir, ok := parseDirection(parts[1])
	index, err := strconv.Atoi(parts[2])
	return point{index, dir}, Why(parts[3]), ok && err == nil
}

func (t tcx) list() ([]attachment, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list pinned links: %w", err)
	}
	var all []attachment
	for _, e := range entries {
		at, why, ok := parsePin(e.Name())
		if !ok {
			continue
		}
		a := attachment{point: at, why: why, handle: filepath.Join(t.dir, e.Name())}
		l, err := link.LoadPinnedLink(filepath.Join(t.dir, e.Name()), nil)
		if err == nil {
			a.program, a.inEffect = inEffect(l, at)
			l.Close()
		}
		all = append(all, a) // even if the pin can't be opened, so that remove deletes it
	}
	return all, nil
}

// attachType returns the kernel's attach type for the direction.
func (d direction) attachType() ebpf.AttachType {
	return [directions]ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress}[d]
}

// inEffect reports whether the link is in the kernel's list for the point, in the calling
// thread's network namespace, and returns its program's id. The index in the link's information
// does not prove that: another device can get the index of a removed one, and a device that moves
// to another namespace retains its links.
func inEffect(l link.Link, at point) (ebpf.ProgramID, bool) {
	info, err := l.Info()
	if err != nil {
		return 0, false
	}
	there, err := link.QueryPrograms(link.QueryOptions{Target: at.index, Attach: at.dir.attachType()})
	if err != nil {
		return info.Program, false
	}
	return info.Program, slices.ContainsFunc(there.Programs, func(p link.AttachedProgram) bool {
		id, ok := p.LinkID()
		return ok && id == info.ID
	})
}

func (t tcx) attach(at point, why Why, prog loadedProgram, old *attachment) error {
	if old == nil {
		return t.attachNew(at, why, prog)
	}
	oldPin := old.handle.(string)
	if old.program != prog.id {
		l, err := link.LoadPinnedLink(oldPin, nil)
		if err != nil {
			return fmt.Errorf("open pinned link %s: %w", oldPin, err)
		}
		defer l.Close()
		if err := l.Update(prog.Program); err != nil {
			return fmt.Errorf("replace the program of link %s: %w", oldPin, err)
		}
	}
	if pin := t.pin(at, why); pin != oldPin {
		if err := os.Rename(oldPin, pin); err != nil {
			return fmt.Errorf("rename the pinned link: %w", err)
		}
	}
	return nil
}

// attachNew attaches a new link: before other programs at ingress, and after them at egress. So
// other programs see packets as the stack does, with the addresses of client and endpoint.
func (t tcx) attachNew(at point, why Why, prog loadedProgram) error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return fmt.Errorf("make directory %s for pinned links: %w", t.dir, err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: at.index, Program: prog.Program, Attach: at.dir.attachType(),
		Anchor: [directions]link.Anchor{link.Head(), link.Tail()}[at.dir]})
	if errors.Is(err, unix.EEXIST) { // it is attached, but its pin was removed
		l, err = findLink(at, prog.id)
	}
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Pin(t.pin(at, why)); err != nil {
		return fmt.Errorf("pin the link: %w", err)
	}
	if _, ok := inEffect(l, at); !ok {
		return fmt.Errorf("%w: the kernel does not list the link that it has just made", errNotInEffect)
	}
	return nil
}

// findLink opens the link by which a program is attached at a point.
func findLink(at point, prog ebpf.ProgramID) (link.Link, error) {
	there, err := link.QueryPrograms(link.QueryOptions{Target: at.index, Attach: at.dir.attachType()})
	if err != nil {
		return nil, err
	}
	for _, p := range there.Programs {
		if id, ok := p.LinkID(); ok && p.ID == prog {
			return kernelLinks.get(id)
		}
	}
	return nil, errors.New("the program is attached, and not by a link")
}

// hold opens the pinned link of a point.
func (t tcx) hold(at point, why Why) (link.Link, error) {
	return link.LoadPinnedLink(t.pin(at, why), nil)
}

var errNotInEffect = errors.New("attached, but not in effect")

func (t tcx) remove(a attachment) error {
	pin := a.handle.(string)
	l, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		// After Close alone the link would remain in effect for a while, or as long as another
		// process has it open. ENOLINK: the device is gone.
		err = l.Detach()
		l.Close()
		if err != nil && !errors.Is(err, unix.ENOLINK) {
			return fmt.Errorf("detach link %s: %w", pin, err)
		}
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the pinned link: %w", err)
	}
	return nil
}

// haveTCX returns nil if the kernel has TCX. A kernel with TCX answers ENODEV for this index,
// which no device has.
func haveTCX() error {
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1<<31 - 1, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("ask for TCX programs: %w", err)
}
