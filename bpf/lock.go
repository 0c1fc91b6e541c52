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

// Lock is held by the one daemon that works on a directory of pins.
type Lock struct{ dir *os.File }

// ErrLocked says that a daemon is at work.
var ErrLocked = errors.New("another shunt daemon is at work")

// lockPatience is how long TakeLock tries: IsLocked has the lock for a moment, and
// so does a daemon that is just ending.
const lockPatience = 200 * time.Millisecond

// TakeLock locks the directory itself (flock): the kernel lets go of it however
// the process ends, and nothing is left on the bpf file system.
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

// IsLocked says whether a daemon is at work on the directory.
func IsLocked(root string) bool {
	l, err := tryLock(root)
	if err == nil {
		_ = l.Release() // it was only asked for
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

// Release lets go of the lock.
func (l *Lock) Release() error { return l.dir.Close() }

// Keep makes sure that root is the locked directory, and says what it did. A directory
// that was renamed gets its name back. Where it was removed, or its file system
// unmounted, a new one is made as RequireBPFFS does, and locked.
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

// path returns where the locked directory is now.
func (l *Lock) path(ours os.FileInfo) (string, bool) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", l.dir.Fd()))
	if err != nil {
		return "", false
	}
	there, err := os.Stat(path) // another one, where the file system was unmounted
	return path, err == nil && os.SameFile(ours, there)
}
