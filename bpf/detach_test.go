// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"shunt/maps"
)

// TestDetachProven: Detach removes shunt's programs wherever their links are pinned, and leaves
// everything else.
func TestDetachProven(t *testing.T) {
	root, cg := filepath.Join(bpffs(t), "shunt"), cgroup(t)
	set, k := openMaps(t, root)
	p, err := Load(set)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Attach(root, cg), Verify(t.Context(), k, cg), p.Close()); err != nil {
		t.Fatal(err)
	}
	links := filepath.Join(root, linkDir)
	// A foreign program at the same hook, which reads a map of shunt's and is pinned in shunt's
	// directory; and its own maps.
	reads := passing(ebpf.AttachCGroupInet4Connect)
	reads.Instructions = append(asm.Instructions{asm.LoadMapPtr(asm.R1, set.Map("counters").FD())}, reads.Instructions...)
	other, err := ebpf.NewProgram(reads)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	theirs, err := link.AttachCgroup(link.CgroupOptions{Path: cg, Attach: ebpf.AttachCGroupInet4Connect, Program: other})
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "somebodys", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	foreign := []string{filepath.Join(links, "theirs"), filepath.Join(root, "maps", "theirs"), filepath.Join(root, "more")}
	if err := errors.Join(theirs.Pin(foreign[0]), m.Pin(foreign[1]), os.Mkdir(foreign[2], 0o700)); err != nil {
		t.Fatal(err)
	}
	// One of shunt's links was moved to a directory where no daemon looks for it. It stays in
	// effect.
	moved := filepath.Join(root, "more", "moved")
	if err := os.Rename(filepath.Join(links, "connect4"), moved); err != nil {
		t.Fatal(err)
	}
	left, err := FindLeft(root)
	if err != nil || len(left.Pins) != 7 || !slices.Equal(left.Foreign, foreign[:1]) {
		t.Errorf("%+v, %v", left, err)
	}
	if n := len(left.links); n != 8 {
		t.Errorf("%d links are found: %v", n, left.Attached)
	}
	if err := errors.Join(Detach(root), maps.Remove(root)); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), k, cg); err == nil || !strings.Contains(err.Error(), "do not act") {
		t.Errorf("after Detach: %v", err)
	}
	l, err := link.LoadPinnedLink(moved, nil)
	if err != nil {
		t.Fatal(err)
	}
	if linkCgroup(l) != 0 {
		t.Error("the link that was moved is still attached")
	}
	l.Close()
	for _, path := range foreign {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("what is somebody else's is gone: %v", err)
		}
	}
	if id := linkCgroup(theirs); id == 0 {
		t.Error("the other's program was detached")
	}
	for _, dir := range []string{links, filepath.Join(root, "maps")} {
		if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
			t.Errorf("in %s is left %v, %v", dir, all, err)
		}
	}
	if left, err := FindLeft(root); err != nil || len(left.Attached)+len(left.Pins) != 0 {
		t.Errorf("after Detach: %+v, %v", left, err)
	}
}

// TestDetachOtherRoot: filters have no pins. Detach leaves the filters of a daemon that works
// with another directory. It removes those that belong to no running daemon, whichever
// directory is named.
func TestDetachOtherRoot(t *testing.T) {
	n := newNode(t, true)
	eth0, _ := n.veth("eth0", "192.0.2.1/24")
	programs, err := Load(n.set)
	n.must(err)
	n.must(programs.Attach(n.root, cgroup(t)))
	n.path().Start()
	n.want("eth0", "address")
	other := filepath.Join(filepath.Dir(n.root), "other")
	for _, make := range []func() error{func() error { return nil }, func() error { return os.Mkdir(other, 0o700) }} {
		n.must(make())
		if left, err := FindLeft(other); err != nil || len(left.Attached) != 0 {
			t.Errorf("%v, %v", left.Attached, err)
		}
		n.must(Detach(other))
		n.want("eth0", "address")
	}
	n.wantRun(eth0, frame)
	if left, err := FindLeft(n.root); err != nil || len(left.Attached) != 10 {
		t.Errorf("in its own directory: %v, %v", left.Attached, err)
	}
	// The daemon and its pins are gone.
	n.must(errors.Join(os.RemoveAll(filepath.Join(n.root, linkDir)), programs.Close()))
	n.eventually("the links are gone", func() bool {
		left, err := FindLeft(n.root)
		n.must(err)
		return len(left.links) == 0
	})
	n.must(Detach(other))
	n.want()
}
