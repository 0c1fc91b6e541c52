// SPDX-License-Identifier: Apache-2.0

// Package bpf owns the eBPF programs and what loads, attaches, upgrades and
// detaches them, and the sockets that a change leaves behind. It never decides
// what the maps hold. Start reading at sock.c for the programs, load.go for how
// they get into the kernel.
package bpf
