// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// The lock needs no bpf file system: the test uses any directory.
func TestLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if IsLocked(dir) {
		t.Fatal("a new directory is locked")
	}
	lock, err := TakeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !IsLocked(dir) {
		t.Error("a locked directory is not")
	}
	_, err = TakeLock(dir)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "--bpffs-root") {
		t.Errorf("the second lock: %v", err)
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	if IsLocked(dir) {
		t.Error("a directory of which the lock was released is locked")
	}
	if _, err := TakeLock(dir + "/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
	if IsLocked(dir + "/nowhere") {
		t.Error("a directory that is not there is locked")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}

// A daemon that starts while IsLocked holds the lock for a moment still gets it.
func TestLockPatience(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	held, err := tryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	released := make(chan error, 1)
	time.AfterFunc(lockPatience/10, func() { released <- held.Release() })
	lock, err := TakeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-released, lock.Release()); err != nil {
		t.Error(err)
	}
}
