// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"os"
	"strings"
	"testing"

	"shunt/bpf"
)

// TestMain makes the test binary run as shunt if its first argument is a command and not a
// flag of the test.
func TestMain(m *testing.M) {
	bpf.MaybeProbe()
	maybeLab()
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}
