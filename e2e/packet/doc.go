// SPDX-License-Identifier: Apache-2.0

// Package packet tests the programs of the packet path with single packets, by
// BPF_PROG_TEST_RUN: no packet is ever sent. It has a builder of packets, a rig that runs
// them through the programs on real maps, a table of cases, a slow model of the same rules,
// and random packets through both. It has only tests. Start reading at table_test.go, then
// model_test.go.
package packet
