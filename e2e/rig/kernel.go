// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// InShort returns the smaller number in short tests, as in VMs, where a system call takes
// ten times as long.
func InShort(short, full int) int {
	if testing.Short() {
		return short
	}
	return full
}

var kernelTypes = sync.OnceValue(func() []byte {
	text, _ := os.ReadFile("/sys/kernel/btf/vmlinux") // without it every feature seems to be missing, which the tests notice
	return text
})

// declares reports whether a name is in the kernel's own types (BTF).
func declares(name string) bool { return bytes.Contains(kernelTypes(), []byte("\x00"+name+"\x00")) }

// Lacks reports whether this kernel is known to lack a feature of shunt status. It detects
// this by another method than shunt.
func Lacks(feature string) bool {
	switch feature {
	case "bpf_set_retval":
		return !declares("BPF_FUNC_set_retval")
	case "TCX":
		return !declares("BPF_TCX_INGRESS")
	case "checksum state in tc programs":
		return !declares("bpf_cast_to_kern_ctx")
	case "SO_NETNS_COOKIE":
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		_, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return errors.Is(err, unix.ENOPROTOOPT)
	}
	return false
}

// Refusal returns the errno of connect() and sendto() for a program's verdict want: without
// bpf_set_retval a program cannot choose it, and the kernel returns EPERM
// (docs/KERNELS.md).
func Refusal(want syscall.Errno) syscall.Errno {
	if Lacks("bpf_set_retval") {
		return syscall.EPERM
	}
	return want
}

// KnowsOwnNetns reports whether the hooks know the network namespace of a node here: a node of
// the lab is not in the machine's first one, so the kernel must report which one it is in
// (docs/KERNELS.md). They need it for node ports on loopback addresses, and for UDP ports of
// the node's own processes.
func KnowsOwnNetns() bool { return !Lacks("SO_NETNS_COOKIE") }

// NeedOwnNetns skips the test unless they do.
func NeedOwnNetns(t *testing.T) {
	t.Helper()
	if !KnowsOwnNetns() {
		t.Skip("the hooks do not know the node's own network namespace: the kernel does not report its cookie (SO_NETNS_COOKIE)")
	}
}
