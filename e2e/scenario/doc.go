// SPDX-License-Identifier: Apache-2.0

// Package scenario holds tests only: Services and EndpointSlices in YAML, as a user writes
// them, and the expected content of the maps, in testdata. The objects pass everything from
// the converter to the maps, without an API server and without packets. Start reading at
// any file of testdata, then run_test.go.
package scenario
