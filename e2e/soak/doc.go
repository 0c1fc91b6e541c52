// SPDX-License-Identifier: Apache-2.0

// Package soak runs one daemon with random faults under traffic of all kinds, and checks
// which connections fail and what is left afterwards. A failure is allowed if the fault
// declares it, for the time that it declares; every other failure fails the test. The
// faults are in faults_test.go, the traffic in traffic_test.go.
//
// SOAK_MINUTES sets the duration, SOAK_SEED the faults: each run prints its seed.
package soak
