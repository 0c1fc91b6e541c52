// SPDX-License-Identifier: Apache-2.0

// Package bench measures what a connection and a change cost with shunt and other proxies,
// relative to no proxy at all: always in one run, interleaved, as ratios. It never asserts
// a time, and changes nothing outside the lab that it makes. `shunt bench` is Run in
// bench.go; the contenders are in contender.go, the arithmetic in stats.go. Benchmarks of
// shunt's parts are in e2e/bench.
package bench
