// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// An attached link need not act on a cgroup's processes: Verify reports that.
func TestVerifyElsewhere(t *testing.T) {
	root := filepath.Join(bpffs(t), "shunt")
	here, there := cgroup(t), cgroup(t)
	set, k := openMaps(t, root)
	p, err := Load(set)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Attach(root, here); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), k, here); err != nil {
		t.Errorf("where it is attached: %v", err)
	}
	err = Verify(t.Context(), k, there)
	if err == nil || !strings.Contains(err.Error(), there) || !strings.Contains(err.Error(), "--cgroup-root") {
		t.Errorf("where it is not attached: %v", err)
	}
	for _, cg := range []string{here, there} {
		entries, err := filepath.Glob(filepath.Join(cg, "shunt-hook-check-*"))
		if err != nil || len(entries) != 0 {
			t.Errorf("cgroups of probes are left: %v, %v", entries, err)
		}
	}
	if d, err := k.Dump(); err != nil || len(d.Frontends) != 0 {
		t.Errorf("entries of probes are left: %v, %v", d.Frontends, err)
	}
}

// A daemon that is started with another cgroup attaches there, and detaches from the first one,
// also where that was removed.
func TestAttachElsewhere(t *testing.T) {
	root := filepath.Join(bpffs(t), "shunt")
	first, second, third := cgroup(t), cgroup(t), cgroup(t)
	set, k := openMaps(t, root)
	p, err := Load(set)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, cg := range []string{first, second} {
		if err := p.Attach(root, cg); err != nil {
			t.Fatal(err)
		}
		if err := Verify(t.Context(), k, cg); err != nil {
			t.Error(err)
		}
	}
	if err := Verify(t.Context(), k, first); err == nil {
		t.Error("the hooks still act in the cgroup before")
	}
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second) // the kernel detaches some time after the cgroup's removal
	for slices.ContainsFunc(Attachments(root, set), func(a Attachment) bool {
		return a.Attached || !strings.Contains(a.Problem, "gone")
	}) {
		if time.Now().After(deadline) {
			t.Fatalf("with the cgroup gone: %+v", Attachments(root, set))
		}
		time.Sleep(time.Millisecond)
	}
	if err := p.Attach(root, third); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), k, third); err != nil {
		t.Error(err)
	}
}

// Where an exclusive program is attached, the error names that cause.
func TestAttachBesideExclusive(t *testing.T) {
	root := filepath.Join(bpffs(t), "shunt")
	cg := cgroup(t)
	set, _ := openMaps(t, root)
	p, err := Load(set)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dir, err := os.Open(cg)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	alone := link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: p.objects.ShuntConnect4, Attach: ebpf.AttachCGroupInet4Connect}
	if err := link.RawAttachProgram(alone); err != nil {
		t.Fatal(err)
	}
	if err := p.Attach(root, cg); err == nil || !strings.Contains(err.Error(), "wants to be alone") || !strings.Contains(err.Error(), cg) {
		t.Errorf("attach beside a program that is alone: %v", err)
	}
	if err := link.RawDetachProgram(link.RawDetachProgramOptions(alone)); err != nil {
		t.Fatal(err)
	}
	if err := p.Attach(root, cg); err != nil {
		t.Error(err)
	}
}

// The iterators over sockets load on this kernel, and find no socket where there is none.
// e2e/socket tests what they find.
func TestSockIters(t *testing.T) {
	set, _ := openMaps(t, filepath.Join(bpffs(t), "shunt"))
	s, err := openIters(set)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if all, err := s.readStale(); err != nil || len(all) != 0 {
			t.Errorf("%+v, %v", all, err)
		}
		if all, err := s.readTranslated(); err != nil || len(all) != 0 {
			t.Errorf("%v, %v", all, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
