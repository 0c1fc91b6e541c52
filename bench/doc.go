// SPDX-License-Identifier: Apache-2.0

// Package bench owns the measuring: what a connection and a change cost beside
// what they cost without shunt, always in one run, interleaved, as ratios. It
// never asserts a time, and changes nothing outside the lab that it makes.
// `shunt bench` is Run in bench.go, with what it compares in contender.go and
// its arithmetic in stats.go; the benchmarks of parts are in e2e/bench.
package bench
