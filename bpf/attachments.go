// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"shunt/maps"
)

// Attachment is the current state of one hook.
type Attachment struct {
	Hook     string `json:"hook"`
	Attached bool   `json:"attached"`
	// Cgroup is the id (inode number) of the cgroup that the link is attached to.
	Cgroup  uint64 `json:"cgroup,omitempty"`
	Program uint32 `json:"program,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// Attachments returns the state of every hook from the pinned links below root. It checks that
// their programs use the maps of set; a nil set skips that check.
func Attachments(root string, set *maps.Set) []Attachment {
	var all []Attachment
	for _, h := range (&Programs{}).hooks() {
		a := Attachment{Hook: h.pin}
		l, err := link.LoadPinnedLink(filepath.Join(root, linkDir, h.pin), nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			a.Problem = "not attached: no link is pinned"
		case err != nil:
			a.Problem = err.Error()
		default:
			a.read(l, set)
			l.Close()
		}
		all = append(all, a)
	}
	return all
}

func (a *Attachment) read(l link.Link, set *maps.Set) {
	info, err := l.Info()
	if err != nil {
		a.Problem = err.Error()
		return
	}
	a.Cgroup, a.Program = linkCgroup(l), uint32(info.Program)
	if a.Cgroup == 0 {
		a.Problem = "it was detached, or the cgroup that it was attached to is gone"
		return
	}
	a.Problem = programProblem(a.Hook, info.Program, set)
	a.Attached = a.Problem == ""
}

// programProblem returns why a program is not shunt's program for the hook, or does not use the
// maps of set. It returns "" if there is no such problem. A nil set skips the check of maps.
func programProblem(hook string, id ebpf.ProgramID, set *maps.Set) string {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return err.Error()
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return err.Error()
	}
	// The kernel retains the first 15 characters of a name.
	if info.Name == "" || !strings.HasPrefix("shunt_"+hook, info.Name) {
		return fmt.Sprintf("its program was replaced by %q, which is not shunt's: a daemon (shunt run) puts its own back", info.Name)
	}
	if set == nil {
		return ""
	}
	ids, _ := info.MapIDs() // Linux 4.15
	for _, id := range ids {
		if name := foreignMap(id, set); name != "" {
			return fmt.Sprintf("its program works with another map %s than the pinned one, since a daemon was killed while it "+
				"replaced maps: the next daemon (shunt run) puts that right", name)
		}
	}
	return ""
}

// foreignMap returns the name of the map if set has another map of that name, else "".
func foreignMap(id ebpf.MapID, set *maps.Set) string {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return ""
	}
	defer m.Close()
	theirs, err := m.Info()
	if err != nil || set.Map(theirs.Name) == nil {
		return "" // the program's own constants
	}
	ours, err := set.Map(theirs.Name).Info()
	if err != nil {
		return ""
	}
	if own, _ := ours.ID(); own != id {
		return theirs.Name
	}
	return ""
}
