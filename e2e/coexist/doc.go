// SPDX-License-Identifier: Apache-2.0

// Package coexist compares shunt with the real kube-proxy in situations where other
// programs of a node use the same addresses, packets and devices. It has only tests.
// Each situation runs on three nodes: kube-proxy with iptables, kube-proxy with nftables,
// and shunt. Start reading at situations_test.go; `make coexist` prints the table.
package coexist
