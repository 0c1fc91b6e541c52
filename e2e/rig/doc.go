// SPDX-License-Identifier: Apache-2.0

// Package rig is shared by tests of the daemon in a lab: the process, the file of manifests
// that it reads, and the objects in it. It has no tests and depends on `shunt run` only.
// Start reading at Daemon, then Manifests.
package rig
