package rig

import (
	"sync"
	"syscall"
	"testing"

	"shunt/bpf"
)

// InShort gives the smaller number where tests are to be short, as in VMs, where a
// system call takes ten times as long.
func InShort(short, full int) int {
	if testing.Short() {
		return short
	}
	return full
}

var features = sync.OnceValue(bpf.Features)

// lacks says why the kernel has no feature of that name, by the probe with which
// shunt status tells it; nil: it has it.
func lacks(name string) error {
	for _, f := range features() {
		if f.Name == name {
			return f.Err
		}
	}
	panic("shunt probes for no feature called " + name)
}

// Refusal is what connect() and sendto() fail with where a program means that error:
// one that can't say which it means gets EPERM from the kernel (docs/KERNELS.md).
func Refusal(want syscall.Errno) syscall.Errno {
	if lacks("bpf_set_retval") != nil {
		return syscall.EPERM
	}
	return want
}

// TakesLoopback says whether node ports are taken on a node's loopback here: a node
// of the lab is in a network namespace that is not the machine's first, and a kernel
// has to tell the daemon which (docs/KERNELS.md).
func TakesLoopback() bool { return lacks("SO_NETNS_COOKIE") == nil }

// NeedLoopback skips the test where they are not.
func NeedLoopback(t *testing.T) {
	t.Helper()
	if err := lacks("SO_NETNS_COOKIE"); err != nil {
		t.Skipf("node ports are not taken on loopback: %v", err)
	}
}
