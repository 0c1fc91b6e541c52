// SPDX-License-Identifier: Apache-2.0

// Package socket_test tests the whole socket path: the real daemon, on nodes and
// pods of package lab, asked by real sockets. It owns nothing but its tests. Start
// reading at cluster_test.go, then connect_test.go; what each test shows is named
// in its comment.
package socket_test

import (
	"os"
	"testing"

	"shunt/e2e/rig"
)

// TestMain lets the test binary also be the program redial, beside those of rig.Main.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == redialCommand {
		os.Exit(redial(os.Args[2:]))
	}
	rig.Main(m)
}
