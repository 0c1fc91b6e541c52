// SPDX-License-Identifier: Apache-2.0

// Package bench measures the cost of a connection and of a change with shunt and other
// proxies, relative to a node without a proxy: always in one run, interleaved, as ratios. It
// never asserts a time, and changes nothing outside the lab that it creates, except objects
// in the API server of --kubeconfig. `shunt bench` is Run in bench.go; contender.go contains
// the contenders, stats.go the arithmetic. Benchmarks of shunt's parts are in e2e/bench.
package bench
