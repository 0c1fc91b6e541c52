// Package bench owns the measuring: what a connection and a change cost beside
// what they cost without shunt, always in one run, interleaved, as ratios. It
// never asserts a time. Start reading at connect_test.go.
package bench
