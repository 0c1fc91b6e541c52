package bpf

import (
	"errors"
	"fmt"
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
