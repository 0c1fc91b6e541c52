// SPDX-License-Identifier: Apache-2.0

// Package scenario holds tests only: Services and EndpointSlices in YAML, as a
// user writes them, and what the maps must hold for them, in testdata. They go
// the whole way from the converter to the maps, without an API server and
// without a packet. Start reading at any file of testdata, then run_test.go.
package scenario
