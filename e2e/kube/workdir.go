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

// workDir holds one cluster's keys, logs and data. Its owner keeps a lock on a file
// in it for life: a directory whose lock is free was left by a killed process.
type workDir struct {
	path  string
	owner *os.File
}

// newWorkDir makes a directory, and removes those that killed processes left.
func newWorkDir() (*workDir, error) {
	removeAbandoned()
	// Under another name until it is locked, lest somebody take it for abandoned.
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

// removeAbandoned is best effort: what it can't remove now, a later start will.
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

// lock opens a file and locks it, or fails at once when somebody else holds it.
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
