// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// Left has the links, filters and pins that a daemon has left.
type Left struct {
	// Pins are the paths of shunt's links and seed. Foreign are all other paths in the directory
	// of links.
	Pins, Foreign []string
	// Attached describes the links in effect, pinned or not, and the filters of devices in this
	// network namespace.
	Attached []string

	links []link.ID
	// ingress are the links among these that attach ingress programs to devices.
	ingress map[link.ID]bool
	filters []attachment
}

// FindLeft finds the links, filters and pins of the daemon whose directory of pins is root. A
// link is that daemon's if its program has a name of shunt's, and either the link is pinned in
// the directory of links or the program uses a map that is pinned below root. The second
// condition finds a link whose pin was removed or moved. A filter has no pin. If its program uses
// a map of another daemon with links in effect, and no map that is pinned below root, the filter
// is the other daemon's. All other filters belong to root's daemon.
func FindLeft(root string) (left Left, err error) {
	set, err := maps.FindLeft(root)
	if err != nil {
		return left, err
	}
	dir := filepath.Join(root, linkDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return left, fmt.Errorf("look for pinned links: %w", err)
	}
	pinned := map[link.ID]bool{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if id, ours := ourPin(path); ours {
			left.Pins, pinned[id] = append(left.Pins, path), true
		} else {
			left.Foreign = append(left.Foreign, path)
		}
	}
	if path := filepath.Join(root, seedPin); isSeed(path) {
		left.Pins = append(left.Pins, path)
	}
	var others []ebpf.MapID // used by daemons of other directories
	err = kernelLinks.each(func(id link.ID, l link.Link) {
		left.addLink(l, id, func(info *link.Info) bool {
			if pinned[id] || worksWith(info.Program, set.IDs) {
				return true
			}
			others = append(others, mapsOf(info.Program)...)
			return false
		})
	})
	if err != nil {
		return left, fmt.Errorf("look through the kernel's links: %w", err)
	}
	filters, err := clsact{}.list()
	for _, f := range filters {
		if worksWith(f.program, others) && !worksWith(f.program, set.IDs) {
			continue
		}
		left.filters = append(left.filters, f)
		left.Attached = append(left.Attached, fmt.Sprintf("%s filter of device %d", f.dir, f.index))
	}
	return left, err
}

// addLink adds a link if it is in effect and ours returns true for it.
func (l *Left) addLink(of link.Link, id link.ID, ours func(*link.Info) bool) {
	info, err := of.Info()
	if err != nil {
		return // the link was freed meanwhile
	}
	where := ""
	if cg := info.Cgroup(); cg != nil && cg.CgroupId != 0 {
		where = fmt.Sprintf("cgroup %d", cg.CgroupId)
	}
	if t := info.TCX(); t != nil && t.Ifindex != 0 {
		where = fmt.Sprintf("device %d", t.Ifindex)
	}
	if where == "" || !ours(info) {
		return
	}
	l.links = append(l.links, id)
	if t := info.TCX(); t != nil && ebpf.AttachType(t.AttachType) == ebpf.AttachTCXIngress {
		if l.ingress == nil {
			l.ingress = map[link.ID]bool{}
		}
		l.ingress[id] = true
	}
	l.Attached = append(l.Attached, fmt.Sprintf("link %d, program %s, of %s", id, programName(info.Program), where))
}

// ourPin reports whether a link of a shunt program is pinned at path, and returns its id.
func ourPin(path string) (link.ID, bool) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return 0, false
	}
	defer l.Close()
	info, err := l.Info()
	return info.ID, err == nil && strings.HasPrefix(programName(info.Program), programPrefix)
}

// programPrefix is the prefix of the names of shunt's programs.
const programPrefix = "shunt_"

func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}

// worksWith reports whether the program is shunt's and uses one of the maps.
func worksWith(id ebpf.ProgramID, ids []ebpf.MapID) bool {
	return slices.ContainsFunc(mapsOf(id), func(m ebpf.MapID) bool { return slices.Contains(ids, m) })
}

// mapsOf returns the maps that a program of shunt uses; nil for other programs.
func mapsOf(id ebpf.ProgramID) []ebpf.MapID {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil || !strings.HasPrefix(info.Name, programPrefix) {
		return nil
	}
	used, _ := info.MapIDs()
	return used
}

func isSeed(path string) bool {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return false
	}
	defer m.Close()
	info, err := m.Info()
	return err == nil && info.Name == "flow_seed"
}

// Detach detaches the programs of the daemon whose directory of pins is root, and removes their
// pins. Of the packet path's filters it removes those in this network namespace. It returns an
// error that lists what is still attached at the end.
func Detach(root string) error {
	left, err := FindLeft(root)
	if err != nil {
		return err
	}
	if err := left.detach(); err != nil {
		return err
	}
	again, err := FindLeft(root)
	if err != nil {
		return err
	}
	if len(again.Attached) > 0 {
		return fmt.Errorf("still attached: %s", strings.Join(again.Attached, "; "))
	}
	for _, pin := range left.Pins {
		if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove pin: %w", err)
		}
	}
	stays := len(left.Foreign) > 0
	if err := os.Remove(filepath.Join(root, linkDir)); err != nil && !errors.Is(err, fs.ErrNotExist) && !stays {
		return fmt.Errorf("remove directory of pinned links: %w", err)
	}
	return nil
}

// linksOf returns the links of devices' ingress programs for ingress, and all other links for
// egress. The link that was attached last comes first: the kernel lists links in the order of
// attaching.
func (l *Left) linksOf(dir direction) (ids []link.ID) {
	for _, id := range slices.Backward(l.links) {
		if l.ingress[id] == (dir == ingress) {
			ids = append(ids, id)
		}
	}
	return ids
}

// detach detaches all links and filters, those of devices in detachOrder.
func (l *Left) detach() error {
	for _, dir := range detachOrder {
		for _, id := range l.linksOf(dir) {
			if err := detachID(id); err != nil {
				return err
			}
		}
		var errs []error
		for _, f := range l.filters {
			if f.dir == dir {
				errs = append(errs, clsact{}.remove(f))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

func detachID(id link.ID) error {
	l, err := kernelLinks.get(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take link %d out of effect: %w", id, err)
	}
	defer l.Close()
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) { // ENOLINK: its device is gone
		return fmt.Errorf("take link %d out of effect: %w", id, err)
	}
	return nil
}
