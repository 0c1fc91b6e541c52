// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runDir contains a directory per lab. The file "owner" in a lab's directory is locked (flock)
// as long as the lab's process exists: the kernel releases the lock when the process ends for
// any reason, so that a lab does not depend on process ids. The lock on runDir/lock serializes
// the creation of a lab's directory and the search for dead labs; it is held only briefly.
const runDir = "/run/shunt-lab"

// owner is the content of the owner file: information for people and, for Sweep, the lab's
// cgroup.
type owner struct {
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Cgroup  string    `json:"cgroup"`
}

// state is a lab's directory, and the lock that shows that its process is alive.
type state struct {
	id, dir, cgroup string
	lock            *os.File
}

// netnsName returns the name of one of the lab's namespaces.
func (s *state) netnsName(name string) string { return netnsPrefix(s.id) + name }

func netnsPrefix(id string) string { return "shunt-" + id + "-" }

func cgroupName(id string) string { return "shunt-lab-" + id }

func lockFile(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

func lockRunDir() (*os.File, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, err
	}
	return lockFile(filepath.Join(runDir, "lock"), os.O_CREATE, unix.LOCK_EX)
}

// newState picks an unused id and makes the lab's directory, locked.
func newState(cgroupRoot string) (*state, error) {
	all, err := lockRunDir()
	if err != nil {
		return nil, err
	}
	defer all.Close()
	random := make([]byte, 4)
	rand.Read(random) // never fails: see crypto/rand
	s := &state{id: hex.EncodeToString(random)}
	s.dir = filepath.Join(runDir, s.id)
	s.cgroup = filepath.Join(cgroupRoot, cgroupName(s.id))
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return nil, err
	}
	if s.lock, err = lockFile(filepath.Join(s.dir, "owner"), os.O_CREATE, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, err
	}
	who := owner{PID: os.Getpid(), Started: time.Now(), Cgroup: s.cgroup}
	if err := json.NewEncoder(s.lock).Encode(who); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	return s, nil
}

// remove removes everything that carries the lab's id. It ignores what does not exist: a
// lab that was killed early left only a part.
func (s *state) remove() error {
	var errs []error
	if s.cgroup != "" {
		errs = append(errs, removeCgroup(s.cgroup))
	}
	errs = append(errs, unmountBelow(s.dir))
	names, err := filepath.Glob(filepath.Join(netnsDir, netnsPrefix(s.id)+"*"))
	errs = append(errs, err)
	for _, name := range names {
		errs = append(errs, removeNetnsName(name))
	}
	// The directory is removed last, and only if the rest was: a later Sweep finds the
	// remains by it.
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, s.lock.Close())
	}
	return errors.Join(os.RemoveAll(s.dir), s.lock.Close())
}

func unmountBelow(dir string) error {
	all, err := mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range all {
		if !strings.HasPrefix(m[1], dir+"/") {
			continue
		}
		if err := unix.Unmount(m[1], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m[1], err))
		}
	}
	return errors.Join(errs...)
}

// Sweep removes the remains of labs whose process ended without cleaning up, and returns
// their ids. New calls it first.
func Sweep() (ids []string, err error) {
	dead, err := lockDead()
	errs := []error{err}
	for _, s := range dead {
		ids = append(ids, s.id)
		errs = append(errs, s.remove())
	}
	return ids, errors.Join(errs...)
}

// lockDead locks and returns every lab whose process is dead.
func lockDead() ([]*state, error) {
	all, err := lockRunDir()
	if err != nil {
		return nil, err
	}
	defer all.Close()
	entries, err := os.ReadDir(runDir)
	if err != nil {
		return nil, err
	}
	var dead []*state
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		s := &state{id: e.Name(), dir: filepath.Join(runDir, e.Name())}
		s.lock, err = lockFile(filepath.Join(s.dir, "owner"), 0, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // alive
		}
		if errors.Is(err, fs.ErrNotExist) {
			// Its process ended between the first two steps of newState, or
			// between the last two of remove.
			_ = os.Remove(s.dir)
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if path := readOwner(s.lock).Cgroup; filepath.Base(path) == cgroupName(s.id) {
			s.cgroup = path
		}
		dead = append(dead, s)
	}
	return dead, errors.Join(errs...)
}

// readOwner returns the zero owner for a file that was never written: its lab had made
// nothing yet.
func readOwner(f *os.File) (who owner) {
	_ = json.NewDecoder(f).Decode(&who)
	return who
}
