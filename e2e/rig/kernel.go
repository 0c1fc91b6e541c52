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

// InShort gives the smaller number where tests are to be short, as in VMs, where a
// system call takes ten times as long.
func InShort(short, full int) int {
	if testing.Short() {
		return short
	}
	return full
}

var kernelTypes = sync.OnceValue(func() []byte {
	text, _ := os.ReadFile("/sys/kernel/btf/vmlinux") // without it all seems to be lacking, which tests then notice
	return text
})

// declares says whether a name is among those of the kernel's own types (BTF).
func declares(name string) bool { return bytes.Contains(kernelTypes(), []byte("\x00"+name+"\x00")) }

// Lacks says whether this kernel is known to be without a feature of shunt status. It
// asks another way than shunt does.
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

// Refusal is what connect() and sendto() fail with where a program means that error:
// one that can't say which it means gets EPERM from the kernel (docs/KERNELS.md).
func Refusal(want syscall.Errno) syscall.Errno {
	if Lacks("bpf_set_retval") {
		return syscall.EPERM
	}
	return want
}

// TakesLoopback says whether node ports are taken on a node's loopback here: a node
// of the lab is in a network namespace that is not the machine's first, and a kernel
// has to tell the daemon which (docs/KERNELS.md).
func TakesLoopback() bool { return !Lacks("SO_NETNS_COOKIE") }

// NeedLoopback skips the test where they are not.
func NeedLoopback(t *testing.T) {
	t.Helper()
	if !TakesLoopback() {
		t.Skip("node ports are not taken on loopback: the kernel does not tell a network namespace's cookie (SO_NETNS_COOKIE)")
	}
}
