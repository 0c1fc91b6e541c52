// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

func TestMain(m *testing.M) {
	MaybeProbe()
	// Without it every child of a binary with the race detector waits for a second at its end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) // if it fails, tests only take longer
	os.Exit(m.Run())
}

// bpffs mounts a bpf file system for the test.
func bpffs(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loading programs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a bpf file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount the bpf file system: %v", err)
		}
	})
	return dir
}

// cgroup makes a cgroup for the test.
func cgroup(t testing.TB) string {
	t.Helper()
	root, err := FindCgroupRoot("")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(root, "shunt-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeCgroup(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	return dir
}

func openMaps(t testing.TB, root string) (*maps.Set, *maps.Kernel) {
	t.Helper()
	set, _, err := maps.Open(root, maps.Sizes{Services: 64, Slots: 64, Backends: 64, Affinity: 64, Sources: 16, Flows: 16})
	if err != nil {
		t.Fatal(err)
	}
	k, err := maps.NewKernel(set)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	return set, k
}

// Every program loads on this kernel, is attached, acts, is replaced in place, and is detached
// by Detach.
func TestLoadAttachVerify(t *testing.T) {
	root := filepath.Join(bpffs(t), "shunt")
	cg := cgroup(t)
	set, k := openMaps(t, root)
	for round := range 2 { // the second round updates the pinned links
		p, err := Load(set)
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(t.Context(), k, cg); (err == nil) != (round > 0) {
			t.Errorf("Verify, attached %d times: %v", round, err)
		}
		if err := p.Attach(root, cg); err != nil {
			t.Fatal(err)
		}
		if err := Verify(t.Context(), k, cg); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		for _, a := range Attachments(root, set) {
			if !a.Attached {
				t.Errorf("hook %s: %s", a.Hook, a.Problem)
			}
		}
	}
	if err := Detach(root); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), k, cg); err == nil {
		t.Error("Verify finds hooks in effect after Detach")
	}
}

// The error about a kernel that lacks a needed feature is one line.
func TestFeatures(t *testing.T) {
	bpffs(t)
	for _, f := range Features() {
		t.Logf("%-34s needed=%-5v %v", f.Name, f.Needed, f.Err)
		if f.Needed && f.Err != nil {
			t.Errorf("this kernel has no %s: %v", f.Name, f.Err)
		}
		if !f.Needed && f.Without == "" {
			t.Errorf("feature %s does not say what is lost without it", f.Name)
		}
	}
}
