// SPDX-License-Identifier: Apache-2.0

// Package node_test tests the packet path: the real daemon on nodes of package lab,
// asked from outside by real sockets and with real packets, over every kind of pod
// network and under the rules that others install on a node. It owns nothing but its
// tests. Start reading at cluster_test.go, then cells_test.go.
package node_test

import (
	"testing"

	"shunt/e2e/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }
