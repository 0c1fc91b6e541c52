package bpf

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// netnsGlobs is where network namespaces are found: those of processes, and
// those that are mounted without one. With a pid namespace of its own the daemon
// sees only its own processes: its pod has hostPID.
var netnsGlobs = []string{"/proc/self/ns/net", "/proc/[0-9]*/ns/net", "/run/netns/*", "/run/docker/netns/*"}

// eachNetns runs visit once in each network namespace, on a thread of its own.
func eachNetns(ctx context.Context, visit func(path string)) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so that no other one
		// can find itself in a foreign network namespace.
		runtime.LockOSThread()
		done <- visitNetns(ctx, visit)
	}()
	return <-done
}

func visitNetns(ctx context.Context, visit func(path string)) error {
	seen := map[uint64]bool{}
	for _, glob := range netnsGlobs {
		paths, err := filepath.Glob(glob)
		if err != nil {
			return fmt.Errorf("look for network namespaces at %s: %w", glob, err)
		}
		for _, path := range paths {
			if ctx.Err() != nil {
				return nil
			}
			if enterNetns(path, seen) {
				visit(path)
			}
		}
	}
	return nil
}

// enterNetns moves the thread into a network namespace that was not seen yet.
// One that is gone by now is not worth an error.
func enterNetns(path string, seen map[uint64]bool) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || seen[st.Ino] {
		return false
	}
	if unix.Setns(int(f.Fd()), unix.CLONE_NEWNET) != nil {
		return false // not a network namespace: an unmounted leftover of a name
	}
	seen[st.Ino] = true
	return true
}
