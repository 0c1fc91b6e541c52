// SPDX-License-Identifier: Apache-2.0

// Package socket_test tests the whole socket path: the real daemon, on nodes and pods of
// package lab, with real sockets as clients. Start reading at cluster_test.go, then
// connect_test.go; each test's comment says what it shows.
package socket_test

import (
	"os"
	"testing"

	"shunt/e2e/rig"
)

// TestMain adds the program redial to the programs of rig.Main that this binary can be.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == redialCommand {
		os.Exit(redial(os.Args[2:]))
	}
	rig.Main(m)
}
