// SPDX-License-Identifier: Apache-2.0

// Package bpf has the eBPF programs and the code that loads, attaches, upgrades and detaches
// them. It also destroys sockets whose backend is gone, and removes expired flows. It never
// decides about the contents of maps. Start reading at sock.c for the programs, and at load.go
// for how they are loaded.
package bpf
