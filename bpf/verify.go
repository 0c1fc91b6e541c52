package bpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

// A link that exists need not be in effect: the cgroup may not be the one that
// pods are below, or another program may end the chain. So the daemon asks for
// an address that nobody has but an entry of ours that refuses everything, and
// hears whether it is refused. A UDP connect() sends no packet.
const probeEnv = "SHUNT_PROBE_CONNECT"

// probeAddr is of TEST-NET-1 (RFC 5737), which no cluster can route.
var probeAddr = netip.MustParseAddrPort("192.0.2.255:9")

// exit codes of the probing child.
const (
	probeRefused = 0
	probePassed  = 3
	probeTimeout = 10 * time.Second
)

// MaybeProbe makes this process the probing child if it was started as one, and
// does not return then. To be called first thing in main and in TestMain.
func MaybeProbe() {
	if addr, ok := os.LookupEnv(probeEnv); ok {
		ap, err := netip.ParseAddrPort(addr)
		if err == nil && probe(ap) {
			os.Exit(probeRefused)
		}
		os.Exit(probePassed)
	}
}

// probe connects a UDP socket and says whether a program refused.
func probe(to netip.AddrPort) bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	// EPERM: the kernel has no bpf_set_retval.
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPERM)
}

// Verify says whether the hooks act on processes below the cgroup. For a moment it
// makes a cluster IP without ports, which has room where map services is full. It
// belongs to the goroutine that writes the maps.
func Verify(ctx context.Context, tables maps.Tables, cgroup string) (err error) {
	key := maps.NewFrontendKey(probeAddr.Addr(), 0, 0)
	if err := tables.SetFrontend(key, maps.Service{Kind: uint8(maps.UndefinedPort)}); err != nil {
		return fmt.Errorf("check that the hooks are in effect: %w", err)
	}
	defer func() { err = errors.Join(err, tables.DeleteFrontend(key)) }()
	if probe(probeAddr) { // this process is below the cgroup itself
		return nil
	}
	return verifyBelow(ctx, cgroup)
}

// verifyBelow asks from a child process in a cgroup of its own.
func verifyBelow(ctx context.Context, cgroup string) (err error) {
	leaf := filepath.Join(cgroup, fmt.Sprintf("shunt-probe-%d", os.Getpid()))
	if err := os.Mkdir(leaf, 0o700); err != nil {
		return fmt.Errorf("check that the hooks are in effect: make a cgroup below %s: %w", cgroup, err)
	}
	defer func() { err = errors.Join(err, removeCgroup(leaf)) }()
	dir, err := os.Open(leaf)
	if err != nil {
		return fmt.Errorf("check that the hooks are in effect: %w", err)
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	child := exec.CommandContext(ctx, "/proc/self/exe")
	child.Env = append(os.Environ(), probeEnv+"="+probeAddr.String())
	child.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	err = child.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == probePassed:
		return fmt.Errorf("the programs are attached to cgroup %s but do not act on processes below it: "+
			"another cgroup program may come first, or this is not the node's own cgroup root (--cgroup-root)", cgroup)
	}
	return fmt.Errorf("check that the hooks are in effect: run a child in cgroup %s: %w", leaf, err)
}

// removeCgroup removes an empty cgroup; a process that has just ended may still
// be in it for a moment.
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
