// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"shunt/bpf"
	"shunt/cmd"
	"shunt/lab"
)

// TestMain lets the test binary be shunt: if the first argument is a command and no test
// flag, the command runs.
func TestMain(m *testing.M) {
	bpf.MaybeProbe()
	lab.MaybeAgent()
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(cmd.Main(os.Args[1:]))
	}
	code := m.Run()
	if err := closeFixture(); err != nil {
		fmt.Fprintln(os.Stderr, "clean up after the tests:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}
