// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// foreignNetns starts a process in a network namespace of its own.
func foreignNetns(t *testing.T) (inode uint64) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	c := exec.Command("/bin/sleep", "600")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait() // the error is that the process was killed
	})
	return inodeOf(t, fmt.Sprintf("/proc/%d/ns/net", c.Process.Pid))
}

// threadNetns moves one thread of this process to a network namespace of its own. It is not the
// first thread, whose namespace is that of the process.
func threadNetns(t *testing.T) (inode uint64) {
	t.Helper()
	made, done, over := make(chan error), make(chan struct{}), make(chan struct{})
	var hold func()
	hold = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			go hold() // on another thread: this one is locked until then
			<-over
			runtime.UnlockOSThread()
			return
		}
		defer close(over)
		err := unix.Unshare(unix.CLONE_NEWNET) // never unlocked: the thread ends with this goroutine
		var st unix.Stat_t
		if err == nil {
			err = unix.Stat(hostNetns, &st)
		}
		inode = st.Ino
		made <- err
		<-done
	}
	go hold()
	err := <-made
	t.Cleanup(func() {
		close(done)
		<-over
	})
	if err != nil {
		t.Fatal(err)
	}
	return inode
}

// eachNetns visits each network namespace once and from within, also those that only a process
// is in. A namespace that can't be entered does not stop it.
func TestEachNetns(t *testing.T) {
	foreign, own := foreignNetns(t), inodeOf(t, hostNetns)
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	leftover, err := os.CreateTemp("/run/netns", "shunt-test-leftover-")
	if err != nil {
		t.Fatal(err)
	}
	leftover.Close()
	t.Cleanup(func() { _ = os.Remove(leftover.Name()) })
	visits := map[uint64]int{}
	err = eachNetns(t.Context(), netnsGlobs, func(uint64) bool { return true }, func(inode uint64, path string) {
		visits[inode]++
		if path == leftover.Name() {
			t.Errorf("visited %s, which is no network namespace", path)
		}
		var st unix.Stat_t
		if err := unix.Stat(hostNetns, &st); err != nil || st.Ino != inode {
			t.Errorf("visit of %d from within %d (%v)", inode, st.Ino, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for inode, n := range visits {
		if n != 1 {
			t.Errorf("network namespace %d was visited %d times", inode, n)
		}
	}
	if visits[foreign] == 0 || visits[own] == 0 {
		t.Errorf("visited %v, and not both our own %d and the foreign %d", visits, own, foreign)
	}
	only := func(inode uint64) bool { return inode == foreign }
	var path string
	if err := eachNetns(t.Context(), netnsGlobs, only, func(inode uint64, p string) {
		if inode != foreign {
			t.Errorf("visited %s, which was not wanted", p)
		}
		path = p
	}); err != nil || path == "" {
		t.Errorf("the one that was wanted was not visited (%v)", err)
	}
	byThread := threadNetns(t)
	find := func(globs []string) (found bool) {
		if err := eachNetns(t.Context(), globs, func(inode uint64) bool { return inode == byThread },
			func(uint64, string) { found = true }); err != nil {
			t.Error(err)
		}
		return found
	}
	if find(netnsGlobs) || !find(threadGlobs) {
		t.Error("the network namespace of a thread is found among those of processes, or nowhere")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := eachNetns(ctx, netnsGlobs, func(uint64) bool { return true }, func(_ uint64, p string) {
		t.Errorf("visited %s after the context's end", p)
	}); err != nil {
		t.Error(err)
	}
}

// No thread of this process stays in another network namespace, nor does the first thread,
// which never ends.
func TestEachNetnsGoesHome(t *testing.T) {
	foreignNetns(t)
	own := inodeOf(t, hostNetns)
	var walks sync.WaitGroup
	for range 8 {
		walks.Go(func() {
			for range 10 {
				if err := eachNetns(t.Context(), netnsGlobs, func(uint64) bool { return true }, func(uint64, string) {}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	walks.Wait()
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(threads) == 0 {
		t.Fatalf("this process's threads: %v, %v", threads, err)
	}
	for _, path := range threads {
		var st unix.Stat_t
		away := func() bool { return unix.Stat(path, &st) == nil && st.Ino != own } // the thread may have ended
		for i := 0; i < 1000 && away(); i++ {                                       // or be about to: another test's
			time.Sleep(time.Millisecond)
		}
		if away() {
			t.Errorf("%s is network namespace %d, ours is %d", path, st.Ino, own)
		}
	}
}

// The part after a pattern's last wildcard is not globbed.
func TestSplitGlob(t *testing.T) {
	for glob, want := range map[string][2]string{
		hostNetns:                         {hostNetns, ""},
		"/proc/[0-9]*/ns/net":             {"/proc/[0-9]*", "/ns/net"},
		"/run/netns/*":                    {"/run/netns/*", ""},
		"/proc/[0-9]*/task/[0-9]*/ns/net": {"/proc/[0-9]*/task/[0-9]*", "/ns/net"},
	} {
		if dirs, rest := splitGlob(glob); dirs != want[0] || rest != want[1] {
			t.Errorf("%s: %q and %q, want %q", glob, dirs, rest, want)
		}
	}
}
