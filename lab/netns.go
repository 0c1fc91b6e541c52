// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is the directory of iproute2's named network namespaces.
const netnsDir = "/run/netns"

// netns is a network namespace that exists as long as its name in netnsDir.
type netns struct {
	name   string
	handle *os.File
	// nl sends rtnetlink requests inside the namespace, from any thread.
	nl *netlink.Handle
}

// path returns the namespace's file, empty if the namespace could not be made.
func (n *netns) path() string {
	if n == nil {
		return ""
	}
	return filepath.Join(netnsDir, n.name)
}

// onThread runs fn on its own OS thread, then returns the thread to its original network
// namespace. If the return fails, the thread remains locked: the runtime ends the thread
// together with the goroutine, so no other goroutine runs in the wrong namespace.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("the function that ran in a network namespace ended its goroutine")
		defer func() { done <- err }()
		runtime.LockOSThread()
		home, openErr := os.Open("/proc/thread-self/ns/net")
		if openErr != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("open this thread's network namespace: %w", openErr)
			return
		}
		defer func() {
			defer home.Close()
			if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
				err = errors.Join(err, fmt.Errorf("return to the thread's own network namespace: %w", back))
				return
			}
			runtime.UnlockOSThread()
		}()
		err = fn()
	}()
	return <-done
}

// do runs fn on a thread in the namespace. Sockets that fn opens, and /proc/sys/net as fn
// sees it, belong to the namespace.
func (n *netns) do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.handle.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.name, err)
		}
		return fn()
	})
}

// newNetns makes a namespace, sets its sysctls (paths below /proc/sys/net) and
// brings its loopback device up.
func newNetns(name string, sysctls map[string]string) (*netns, error) {
	n := &netns{name: name}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := n.pin(); err != nil {
			return err
		}
		for key, value := range sysctls {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0o644); err != nil {
				return fmt.Errorf("set sysctl: %w", err)
			}
		}
		var err error
		if n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open rtnetlink: %w", err)
		}
		lo, err := n.nl.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		return n.nl.LinkSetUp(lo)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make network namespace %s: %w", name, err), n.remove())
	}
	return n, nil
}

// pin binds the calling thread's namespace to its name and opens it.
func (n *netns) pin() error {
	file, err := os.OpenFile(n.path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	file.Close()
	if err := unix.Mount("/proc/thread-self/ns/net", n.path(), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the namespace to %s: %w", n.path(), err)
	}
	n.handle, err = os.Open(n.path())
	return err
}

// remove removes the name. The kernel ends the namespace when its last process, socket and
// open file are gone.
func (n *netns) remove() error {
	if n.nl != nil {
		n.nl.Close()
	}
	if n.handle != nil {
		n.handle.Close()
	}
	return removeNetnsName(n.path())
}

func removeNetnsName(path string) error {
	// EINVAL: nothing is mounted there.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// ensureNetnsDir makes netnsDir a shared mount, as `ip netns add` does and with the same
// lock. Otherwise a later `ip netns add` would mount the directory over the lab's names,
// and they could not be removed.
func ensureNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", netnsDir, err)
	}
	share := func() error { return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s to itself: %w", netnsDir, err)
		}
		err = share()
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", netnsDir, err)
	}
	return nil
}
