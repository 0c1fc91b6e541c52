// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

// An attached link does not prove that the hooks act: pods may be below another cgroup than the
// link's, or another program may end the chain. So the daemon runs a hook check: it calls
// connect() and sendto() with the addresses of maps.HookCheckAddrs, and checks that the calls are
// refused. Only entries of shunt's map addrs make the hooks refuse these addresses. No call sends
// a packet.
const probeEnv = "SHUNT_PROBE_CONNECT"

// hookCheckPort is that of discard (RFC 863). A hook check's address has no frontend on any port.
const hookCheckPort = 9

// msgProbe is MSG_PROBE of the kernel's socket.h: look up the route, send nothing.
const msgProbe = 0x10

// Exit codes of the child that runs the hook check, and how long it may take.
const (
	probeRefused    = 0
	hookCheckPassed = 3
	probeTimeout    = 10 * time.Second
)

// MaybeProbe runs the hook check and exits if this process was started as its child; else it
// returns. main and TestMain must call it first.
func MaybeProbe() {
	if os.Getenv(probeEnv) == "" {
		return
	}
	_, passed := hookCheck()
	if len(passed) == 0 {
		os.Exit(probeRefused)
	}
	_, _ = os.Stdout.WriteString(strings.Join(passed, " ")) // it fails only if the parent is gone
	os.Exit(hookCheckPassed)
}

// hookCheck runs the hook check in this process, once for each hook that can refuse. It returns the
// hooks that refused and those that let the call pass. Hooks of a family that this kernel lacks
// are in neither.
func hookCheck() (refused, passed []string) {
	for i, to := range maps.HookCheckAddrs {
		domain, suffix := [...]int{unix.AF_INET, unix.AF_INET6}[i], [...]string{"4", "6"}[i]
		address := sockaddrOf(netip.AddrPortFrom(to, hookCheckPort))
		for hook, ask := range map[string]func(fd int) error{
			"connect": func(fd int) error { return unix.Connect(fd, address) },
			// With both flags and no data the kernel does all of sendto() but sending.
			"sendmsg": func(fd int) error { return unix.Sendto(fd, nil, unix.MSG_CONFIRM|msgProbe, address) },
		} {
			fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				continue
			}
			err = ask(fd)
			unix.Close(fd)
			if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPERM) { // EPERM: without bpf_set_retval
				refused = append(refused, hook+suffix)
			} else {
				passed = append(passed, hook+suffix)
			}
		}
	}
	slices.Sort(refused)
	slices.Sort(passed)
	return refused, passed
}

func sockaddrOf(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}
	}
	return &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port())}
}

// Verify returns an error unless the hooks act on processes below the cgroup.
func Verify(ctx context.Context, k *maps.Kernel, cgroup string) error {
	passed, err := prove(ctx, k, cgroup)
	if err == nil && len(passed) > 0 {
		return fmt.Errorf("the programs are attached to cgroup %s but %s do not act on processes below it: "+
			"another cgroup program may come first, or this is not the node's own cgroup root (--cgroup-root)",
			cgroup, strings.Join(passed, ", "))
	}
	return err
}

// prove returns the hooks that do not act on processes below the cgroup. If at least one hook
// refuses the calls of this process, this process is itself below the cgroup, and the check needs
// no child.
func prove(ctx context.Context, k *maps.Kernel, cgroup string) (passed []string, err error) {
	if err := k.SetHookChecks(); err != nil {
		return nil, fmt.Errorf("check that the hooks are in effect: %w", err)
	}
	refused, passed := hookCheck()
	if len(refused) > 0 { // this process is below the cgroup
		return passed, nil
	}
	return proveBelow(ctx, cgroup)
}

// proveBelow runs the hook check in a child process, in a cgroup of its own below cgroup.
func proveBelow(ctx context.Context, cgroup string) (passed []string, err error) {
	leaf := filepath.Join(cgroup, fmt.Sprintf("shunt-hook-check-%d", os.Getpid()))
	if err := os.Mkdir(leaf, 0o700); err != nil && !errors.Is(err, os.ErrExist) { // a killed daemon left it
		return nil, fmt.Errorf("check that the hooks are in effect: make a cgroup below %s: %w", cgroup, err)
	}
	defer func() { err = errors.Join(err, removeCgroup(leaf)) }()
	dir, err := os.Open(leaf)
	if err != nil {
		return nil, fmt.Errorf("check that the hooks are in effect: %w", err)
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	child := exec.CommandContext(ctx, "/proc/self/exe")
	child.Env = append(os.Environ(), probeEnv+"=1")
	child.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := child.Output()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil, nil
	case errors.As(err, &exit) && exit.ExitCode() == hookCheckPassed:
		return strings.Fields(string(out)), nil
	}
	return nil, fmt.Errorf("check that the hooks are in effect: run a child in cgroup %s: %w", leaf, err)
}

// removeCgroup removes an empty cgroup. A process that has just exited may still be in it for a
// moment.
func removeCgroup(dir string) error {
	var err error
	for range 50 {
		if err = os.Remove(dir); err == nil || !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}
