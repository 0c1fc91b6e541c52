// SPDX-License-Identifier: Apache-2.0

// Package node_test tests the packet path: the real daemon on nodes of package lab, with
// real sockets and packets from outside, over every kind of pod network and with rules of
// other programs on a node. It has only tests. Start reading at cluster_test.go, then
// cells_test.go.
package node_test

import (
	"testing"

	"shunt/e2e/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }
