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

// Main is TestMain: it runs the tests, or is one of three other programs: the daemon's
// child for the hook check, the agent of a lab's pod, or shunt itself if the first argument
// is a command of shunt and no test flag. The tests fail if they leave a kernel file open.
func Main(m *testing.M) {
	bpf.MaybeProbe()
	lab.MaybeAgent()
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(cmd.Main(os.Args[1:]))
	}
	// Otherwise every child of a binary with the race detector waits a second at its end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) // if this fails, it only takes longer
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
	entries, _ := os.ReadDir("/proc/self/fd") // an unreadable directory counts as none
	for _, e := range entries {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if strings.HasPrefix(to, "anon_inode:bpf") {
			n++
		}
	}
	return n
}
