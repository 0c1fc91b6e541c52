// SPDX-License-Identifier: Apache-2.0

// Package cluster tests the daemon as a whole: the real `shunt run` on nodes of a lab,
// watching a real kube-apiserver, with real connections from pods and the output of `shunt
// services`. It has only tests, and depends on nothing inside the daemon except the maps.
// Start reading at fixture_test.go, then views_test.go.
package cluster
