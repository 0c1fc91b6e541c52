// SPDX-License-Identifier: Apache-2.0

// Package soak has one daemon live through random faults under traffic of all kinds,
// and looks at what is lost and at what is left. A failure is explained if the fault that
// was there says so, for as long as it says; every other one fails the test. The faults
// are in faults_test.go, the traffic in traffic_test.go.
//
// SOAK_MINUTES says how long it takes, SOAK_SEED which faults there are: the seed of a
// run is printed.
package soak
