// SPDX-License-Identifier: Apache-2.0

// Package contract has the Service contract as a table: which client asks which frontend of
// a service with which policies and endpoints; and which servers may answer, and the client
// address that they see, or the verdict. It has the table and its objects, and runs
// nothing. Its own test checks the table against the maps that lb plans, e2e/socket with
// real sockets and packets: so both agree. Start reading at table.txt, then table.go.
package contract
