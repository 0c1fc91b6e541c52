// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is the lock on a directory of pins. Only one daemon can have it.
type Lock struct{ dir *os.File }

// ErrLocked means that another daemon has the lock.
var ErrLocked = errors.New("another shunt daemon is at work")

// lockPatience is how long TakeLock tries: IsLocked has the lock for a moment, and so has a
// daemon that is exiting.
const lockPatience = 200 * time.Millisecond

// TakeLock locks the directory itself by flock(2): the kernel releases the lock however the
// process ends, and no lock file remains on the bpf file system. TakeLock returns ErrLocked if a
// daemon has the lock for longer than lockPatience.
func TakeLock(root string) (*Lock, error) {
	deadline := time.Now().Add(lockPatience)
	for {
		l, err := tryLock(root)
		if !errors.Is(err, ErrLocked) || time.Now().After(deadline) {
			return l, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// IsLocked reports whether a daemon has the lock on the directory.
func IsLocked(root string) bool {
	l, err := tryLock(root)
	if err == nil {
		_ = l.Release() // taken only for this check
	}
	return errors.Is(err, ErrLocked)
}

func tryLock(root string) (*Lock, error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("open %s to lock it: %w", root, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return &Lock{f}, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w with %s: stop it first, or give this one another --bpffs-root", ErrLocked, root)
	}
	return nil, fmt.Errorf("lock %s: %w", root, err)
}

// Release releases the lock.
func (l *Lock) Release() error { return l.dir.Close() }

// Keep makes sure that root is the locked directory, and returns a description of its repair, or
// "". If the directory was renamed, Keep renames it to root again. If it was removed, or its file
// system unmounted, Keep makes a new one as RequireBPFFS does, and locks that.
func (l *Lock) Keep(root string, mount bool) (did string, err error) {
	ours, err := l.dir.Stat()
	if err != nil {
		return "", fmt.Errorf("look at the locked directory: %w", err)
	}
	if there, err := os.Stat(root); err == nil && os.SameFile(ours, there) {
		return "", nil
	} else if errors.Is(err, fs.ErrNotExist) {
		if now, ok := l.path(ours); ok && os.Rename(now, root) == nil {
			return "it was renamed to " + now + ", and got its name back", nil
		}
	}
	if err := RequireBPFFS(root, mount); err != nil {
		return "", err
	}
	anew, err := TakeLock(root)
	if err != nil {
		return "", err
	}
	_ = l.dir.Close()
	l.dir = anew.dir
	return "it was removed or unmounted, and was made anew", nil
}

// path returns the current path of the locked directory.
func (l *Lock) path(ours os.FileInfo) (string, bool) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", l.dir.Fd()))
	if err != nil {
		return "", false
	}
	there, err := os.Stat(path) // after an unmount there may be another directory at this path
	return path, err == nil && os.SameFile(ours, there)
}
