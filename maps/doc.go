// SPDX-License-Identifier: Apache-2.0

// Package maps has the eBPF maps as typed Go: it opens, sizes, pins, adopts and dumps them. It
// has an in-memory fake and a fault-injecting wrapper, which must return the same results. It
// never decides about the contents of maps (that is package lb) and never loads a program (that
// is package bpf). Start reading at Tables.
package maps
