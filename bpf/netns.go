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

// ownNetns is the network namespace of the thread that looks at it: that of
// /proc/self is the first thread's.
const ownNetns = "/proc/thread-self/ns/net"

// InOtherNetns says whether a process is known to have another network namespace
// than the calling thread.
func InOtherNetns(pid uint32) bool {
	var here, there unix.Stat_t
	return unix.Stat(ownNetns, &here) == nil && unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &there) == nil &&
		here.Ino != there.Ino
}

// netnsGlobs is where network namespaces are found: those of processes, and
// those that are mounted without one. With a pid namespace of its own the daemon
// sees only its own processes: its pod has hostPID.
var netnsGlobs = []string{ownNetns, "/proc/[0-9]*/ns/net", "/run/netns/*", "/run/docker/netns/*"}

// threadGlobs finds those of threads that went where the rest of their process is
// not: many files, for what is not to be found otherwise.
var threadGlobs = []string{"/proc/[0-9]*/task/[0-9]*/ns/net"}

// eachNetns runs visit once in each network namespace that is wanted, by the
// inode number of its file, on a thread of its own.
func eachNetns(ctx context.Context, globs []string, wanted func(inode uint64) bool, visit func(inode uint64, path string)) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(ownNetns)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open this thread's network namespace: %w", err)
			return
		}
		defer home.Close()
		err = visitNetns(ctx, globs, wanted, visit)
		// A thread that can't go home is left locked: it ends with this goroutine,
		// and no other one can find itself in a foreign network namespace.
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

// splitGlob cuts off what follows a pattern's last wildcard. Glob would read a directory for
// each part of that, and the kernel fills in a process's directories as they are read.
func splitGlob(glob string) (dirs, rest string) {
	last := strings.LastIndexAny(glob, "*?[]")
	if i := strings.IndexByte(glob[last+1:], '/'); last >= 0 && i >= 0 {
		return glob[:last+1+i], glob[last+1+i:]
	}
	return glob, ""
}

// enterNetns moves the thread into a network namespace that is wanted and was not
// seen yet. One that is gone by now is not worth an error.
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
	// The path may lead to another one by now.
	if unix.Fstat(int(f.Fd()), &st) != nil || seen[st.Ino] || !wanted(st.Ino) {
		return 0, false
	}
	if unix.Setns(int(f.Fd()), unix.CLONE_NEWNET) != nil {
		return 0, false // not a network namespace: an unmounted leftover of a name
	}
	seen[st.Ino] = true
	return st.Ino, true
}
