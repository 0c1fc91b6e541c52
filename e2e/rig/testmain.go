// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"shunt/bpf"
	"shunt/cmd"
	"shunt/lab"
)

// Main is TestMain: it runs the tests, or is one of three other programs: the
// daemon's probing child, the agent of a lab's pod, and shunt itself, where the first
// argument is a command of it and no flag of the test's. The tests fail where they
// leave a file of the kernel's open.
func Main(m *testing.M) {
	bpf.MaybeProbe()
	lab.MaybeAgent()
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(cmd.Main(os.Args[1:]))
	}
	// Or every child of a binary with the race detector waits a second at its end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) // else it only takes longer
	code := m.Run()
	if left := bpfFiles(); code == 0 && left > 0 {
		fmt.Fprintf(os.Stderr, "%d file descriptors of maps, programs or links were left open\n", left)
		code = 1
	}
	os.Exit(code)
}

// bpfFiles counts this process's open maps, programs and links.
func bpfFiles() int {
	n := 0
	entries, _ := os.ReadDir("/proc/self/fd") // one that can't be read holds none
	for _, e := range entries {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if strings.HasPrefix(to, "anon_inode:bpf") {
			n++
		}
	}
	return n
}
