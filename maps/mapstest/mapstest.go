// SPDX-License-Identifier: Apache-2.0

// Package mapstest has real maps for tests, pinned in a bpf file system of their own. Maps and
// file system do not outlive the test process. Only tests import this package.
package mapstest

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

// BPFFS returns the path of a new, empty bpf file system. It has no mount point: the path is that
// of a file descriptor of this process, so that the file system disappears even if the process is
// killed. The test is skipped if the process may not make a file system.
func BPFFS(tb testing.TB) string {
	tb.Helper()
	fd, err := newBPFFS()
	if errors.Is(err, unix.EPERM) {
		tb.Skipf("needs root: %v", err)
	}
	if errors.Is(err, unix.ENOSYS) { // Linux has it since 5.2
		tb.Skipf("qemu-user has no bpf file system: %v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Close(fd) })
	return fmt.Sprintf("/proc/self/fd/%d", fd)
}

func newBPFFS() (int, error) {
	fs, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("open a bpf file system: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return 0, fmt.Errorf("create a bpf file system: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("mount a bpf file system: %w", err)
	}
	return fd, nil
}

// Open opens the maps pinned below root, makes them if there are none, and closes them when the
// test ends.
func Open(tb testing.TB, root string, sizes maps.Sizes) (*maps.Kernel, maps.OpenResult) {
	tb.Helper()
	set, result, err := maps.Open(root, sizes)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := set.Close(); err != nil {
			tb.Error(err)
		}
	})
	k, err := maps.NewKernel(set)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := k.Close(); err != nil {
			tb.Error(err)
		}
	})
	return k, result
}

// New returns empty real maps of these sizes.
func New(tb testing.TB, sizes maps.Sizes) *maps.Kernel {
	tb.Helper()
	k, _ := Open(tb, BPFFS(tb), sizes)
	return k
}
