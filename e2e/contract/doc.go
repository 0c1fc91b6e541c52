// SPDX-License-Identifier: Apache-2.0

// Package contract is the flows of the Service contract as data: who asks at which
// frontend of a service with which policies and endpoints, and who may answer, as
// whom the client is seen, or the verdict. It owns the table and the objects that it
// is about; it runs nothing. Its own test goes through the table in the maps that
// lb plans, e2e/socket with real sockets and packets: so the two agree. Start
// reading at table.txt, then table.go.
package contract
