// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	workDirPrefix = "shunt-kube-"
	ownerFile     = "owner"
)

// workDir holds one cluster's keys, logs and data. Its owner holds a lock on a file in it:
// a directory with a free lock was left by a killed process.
type workDir struct {
	path  string
	owner *os.File
}

// newWorkDir makes a directory, and removes those left by killed processes.
func newWorkDir() (*workDir, error) {
	removeAbandoned()
	// It has another name until it is locked, so that no process takes it for abandoned.
	making, err := os.MkdirTemp("", "making-"+workDirPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a directory for a control plane: %w", err)
	}
	owner, err := lock(filepath.Join(making, ownerFile), os.O_CREATE)
	if err == nil {
		dir := filepath.Join(filepath.Dir(making), strings.TrimPrefix(filepath.Base(making), "making-"))
		if err = os.Rename(making, dir); err == nil {
			return &workDir{path: dir, owner: owner}, nil
		}
		err = errors.Join(err, owner.Close())
	}
	return nil, errors.Join(fmt.Errorf("prepare the directory %s: %w", making, err), os.RemoveAll(making))
}

func (d *workDir) remove() error {
	return errors.Join(os.RemoveAll(d.path), d.owner.Close())
}

// removeAbandoned makes a best effort: a later start removes what it cannot.
func removeAbandoned() {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), workDirPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		if owner, err := lock(filepath.Join(dir, ownerFile), 0); err == nil {
			_ = os.RemoveAll(dir)
			_ = owner.Close()
		}
	}
}

// lock opens a file and locks it. It fails at once if another process holds the lock.
// Closing the file, or the end of the process, frees it.
func lock(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}
