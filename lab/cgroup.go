// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// mounts returns the fields of every line of /proc/self/mounts: source, mount point, type,
// options.
func mounts() ([][]string, error) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var all [][]string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 4 {
			all = append(all, f)
		}
	}
	return all, nil
}

// findCgroup2 returns the mount point of a writable cgroup v2 hierarchy.
func findCgroup2() (string, error) {
	all, err := mounts()
	if err != nil {
		return "", err
	}
	for _, m := range all {
		if m[2] == "cgroup2" && slices.Contains(strings.Split(m[3], ","), "rw") {
			return m[1], nil
		}
	}
	return "", errors.New("no writable cgroup v2 file system in /proc/self/mounts: mount one (mount -t cgroup2 none DIR)")
}

func makeCgroup(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// cgroupTree returns the cgroups below path, and path itself, deepest first.
func cgroupTree(path string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed during the walk
		}
		if err == nil && d.IsDir() {
			all = append(all, p)
		}
		return err
	})
	slices.Reverse(all)
	return all, err
}

// killCgroup sends SIGKILL to every process in the cgroup and below it. The cgroup must
// contain only processes that a lab started.
func killCgroup(path string) error {
	// No O_CREATE: on this file system it returns EACCES where the file does not exist.
	kill, err := os.OpenFile(filepath.Join(path, "cgroup.kill"), os.O_WRONLY, 0)
	if err == nil {
		_, err = kill.WriteString("1")
		return errors.Join(err, kill.Close())
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Before Linux 5.14 there is no cgroup.kill. Or the cgroup does not exist.
	tree, err := cgroupTree(path)
	if err != nil {
		return err
	}
	for _, dir := range tree {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for pid := range bytes.FieldsSeq(data) {
			if n, err := strconv.Atoi(string(pid)); err == nil && n > 1 {
				_ = syscall.Kill(n, syscall.SIGKILL) // ESRCH: it has ended
			}
		}
	}
	return nil
}

// removeCgroup kills the processes in the cgroup and below it, and removes the cgroup. A
// killed process remains in its cgroup for a moment, so removeCgroup retries for up to ten
// seconds.
func removeCgroup(path string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		err := killCgroup(path)
		tree, walkErr := cgroupTree(path)
		err = errors.Join(err, walkErr)
		for _, dir := range tree {
			if rm := syscall.Rmdir(dir); rm != nil && rm != syscall.ENOENT {
				err = errors.Join(err, &fs.PathError{Op: "rmdir", Path: dir, Err: rm})
			}
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
