// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// requireOwn checks the daemon's own directory as CheckOwn does, and removes the permissions of
// group and others: a process that can open a directory can lock it.
func requireOwn(dir string) error {
	if err := CheckOwn(dir); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = os.Chmod(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("--bpffs-root %s: close it for other users: %w", dir, err)
	}
	return nil
}

// CheckOwn returns an error if another user can create, rename or remove anything in the
// directory of pins, or in its parents on the same file system. It checks the parents first, from
// the mount's root down: once others can't change a directory, they can't replace the directories
// below it after their check. CheckOwn changes nothing.
func CheckOwn(dir string) error {
	var way []string // from the directory up to the mount's root
	for at := dir; requireFS(at, unix.BPF_FS_MAGIC) == nil; at = filepath.Dir(at) {
		way = append(way, at)
	}
	for _, at := range slices.Backward(way) {
		if err := checkOwnDir(at, at == dir); err != nil {
			return fmt.Errorf("--bpffs-root %s: %w", dir, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look at directory %s: %w", dir, err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			return fmt.Errorf("look at %s: %w", path, err)
		}
		if owner := ownerOf(info); owner != os.Geteuid() {
			return fmt.Errorf("--bpffs-root %s: %s belongs to user %d, who may have put anything there: look what it is and remove it",
				dir, path, owner)
		}
	}
	return nil
}

// checkOwnDir checks one directory. A parent may be writable for others if it has the sticky
// bit, as a bpf file system's root has by default; the daemon's own directory (own) may not.
func checkOwnDir(at string, own bool) error {
	info, err := os.Lstat(at)
	if err != nil {
		return err
	}
	const others = fs.FileMode(0o022)
	switch owner := ownerOf(info); {
	case !info.IsDir():
		return fmt.Errorf("%s is no directory: remove it, or name another one", at)
	case owner != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, who could rename or replace what is pinned there: remove it, or name another directory",
			at, owner)
	case info.Mode()&others != 0 && (own || info.Mode()&fs.ModeSticky == 0):
		return fmt.Errorf("%s has mode %04o, so that other users could put, rename or remove pins there: look what is in it, "+
			"and `chmod 0700 %s`", at, info.Mode().Perm(), at)
	}
	return nil
}

func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
