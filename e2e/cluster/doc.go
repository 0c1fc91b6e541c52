// SPDX-License-Identifier: Apache-2.0

// Package cluster owns the tests of the daemon as a whole: the real `shunt run` on
// nodes of a lab, watching a real kube-apiserver, asked by real connections from
// pods and by `shunt services`. It has no code but tests and knows nothing of the
// daemon's inside but the maps. Start reading at fixture_test.go, then views_test.go.
package cluster
