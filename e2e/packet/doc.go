// SPDX-License-Identifier: Apache-2.0

// Package packet tests the programs of the packet path, packet by packet, with
// BPF_PROG_TEST_RUN: nothing is ever sent. It owns a builder of packets, a rig that
// runs them through the programs on real maps, one table of cases, a slow model of
// the same rules, and random packets through both. It has nothing but tests. Start
// reading at table_test.go, then model_test.go.
package packet
