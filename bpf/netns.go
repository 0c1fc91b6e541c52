// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// hostNetns is the network namespace of the thread that opens it. /proc/self would be that of
// the process's first thread.
const hostNetns = "/proc/thread-self/ns/net"

// InOtherNetns reports whether a process is known to be in another network namespace than the
// calling thread.
func InOtherNetns(pid uint32) bool {
	var here, there unix.Stat_t
	return unix.Stat(hostNetns, &here) == nil && unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &there) == nil &&
		here.Ino != there.Ino
}

// netnsGlobs are the paths of network namespaces: those of processes, and those that are
// mounted without a process. In a pid namespace of its own the daemon would see only its own
// processes: therefore its pod has hostPID.
var netnsGlobs = []string{hostNetns, "/proc/[0-9]*/ns/net", "/run/netns/*", "/run/docker/netns/*"}

// threadGlobs are the paths of single threads' network namespaces: a thread may be in another
// namespace than its process. There are many of these files, so they are read only to find
// namespaces that have no path of netnsGlobs.
var threadGlobs = []string{"/proc/[0-9]*/task/[0-9]*/ns/net"}

// eachNetns calls visit once in each network namespace that has a path of globs and for which
// wanted returns true. inode is the inode number of the namespace's file. wanted and visit run on
// a thread of their own.
func eachNetns(ctx context.Context, globs []string, wanted func(inode uint64) bool, visit func(inode uint64, path string)) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(hostNetns)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open this thread's network namespace: %w", err)
			return
		}
		defer home.Close()
		err = visitNetns(ctx, globs, wanted, visit)
		// A thread that can't return to its namespace remains locked: it ends with this
		// goroutine, so that no other goroutine runs in a foreign network namespace.
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func visitNetns(ctx context.Context, globs []string, wanted func(uint64) bool, visit func(uint64, string)) error {
	seen := map[uint64]bool{}
	for _, glob := range globs {
		dirs, rest := splitGlob(glob)
		paths, err := filepath.Glob(dirs)
		if err != nil {
			return fmt.Errorf("look for network namespaces at %s: %w", glob, err)
		}
		for _, path := range paths {
			if ctx.Err() != nil {
				return nil
			}
			path += rest
			if inode, ok := enterNetns(path, seen, wanted); ok {
				visit(inode, path)
			}
		}
	}
	return nil
}

// splitGlob splits a pattern behind the path element with its last wildcard. filepath.Glob would
// also read a directory for each element of the rest. That is slow in /proc, as the kernel
// creates the entries of a process's directories when they are read.
func splitGlob(glob string) (dirs, rest string) {
	last := strings.LastIndexAny(glob, "*?[]")
	if i := strings.IndexByte(glob[last+1:], '/'); last >= 0 && i >= 0 {
		return glob[:last+1+i], glob[last+1+i:]
	}
	return glob, ""
}

// enterNetns moves the thread into a network namespace that is wanted and was not visited yet.
// It returns false if the thread did not move: the namespace is not wanted, was visited already,
// can't be entered, or is gone.
func enterNetns(path string, seen map[uint64]bool, wanted func(uint64) bool) (inode uint64, ok bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || seen[st.Ino] || !wanted(st.Ino) {
		return 0, false
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	// The path may name another namespace by now.
	if unix.Fstat(int(f.Fd()), &st) != nil || seen[st.Ino] || !wanted(st.Ino) {
		return 0, false
	}
	if unix.Setns(int(f.Fd()), unix.CLONE_NEWNET) != nil {
		return 0, false // not a network namespace, as the empty file that an unmount leaves
	}
	seen[st.Ino] = true
	return st.Ino, true
}
