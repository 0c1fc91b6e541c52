// SPDX-License-Identifier: Apache-2.0

// Package rig is what tests of the daemon in a lab share: the process, the file of
// manifests that it reads, and the objects in it. It tests nothing by itself and
// knows no programs, only `shunt run`. Start reading at Daemon, then Manifests.
package rig
