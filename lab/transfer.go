// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net/netip"
	"time"
)

// TransferOptions say how much to move over one TCP connection.
type TransferOptions struct {
	// Up is sent by the client, then Down by the server; bytes. Both sides sum up
	// what they sent and what they got.
	Up, Down int64
	// Pause stops the client when it has sent and received so many, until Resume; 0:
	// it goes through.
	Pause int64
	// Timeout is how long nothing may move; 0: twenty seconds.
	Timeout time.Duration
}

// TransferReport is what came of a transfer.
type TransferReport struct {
	// Up and Down are what the receivers got with the sums that the senders had.
	Up, Down int64
	Server   string
	// ClientSeen is who the server saw.
	ClientSeen netip.AddrPort
	// ClientMTU and ServerMTU are the path MTU that each side's kernel had for the
	// connection when it had sent its last byte, 0 where it sent none.
	ClientMTU, ServerMTU int
	Elapsed              time.Duration
}

type transferArgs struct {
	Dst     netip.AddrPort
	Options TransferOptions
}

// Transferring is a transfer that runs beside its caller.
type Transferring struct {
	pod    *Pod
	handle uint64
}

// StartTransfer connects to a server and begins. Call Wait.
func (p *Pod) StartTransfer(dst netip.AddrPort, opts TransferOptions) (*Transferring, error) {
	t := &Transferring{pod: p}
	return t, p.call(context.Background(), "transfer", transferArgs{dst, opts}, &t.handle)
}

// Bytes is how much the client has sent and received until now.
func (t *Transferring) Bytes() (n int64, err error) {
	err = t.pod.call(context.Background(), "transfer.bytes", handleArgs{t.handle}, &n)
	return n, err
}

// Paused waits until the client stands still as Pause says, or has failed.
func (t *Transferring) Paused() error {
	return t.pod.call(context.Background(), "transfer.paused", handleArgs{t.handle}, &none{})
}

// Resume lets it go on.
func (t *Transferring) Resume() error {
	return t.pod.call(context.Background(), "transfer.resume", handleArgs{t.handle}, &none{})
}

// Wait waits for the end. An error is a failure of the connection, of a timeout or
// of a sum that differs; the report says how far it came.
func (t *Transferring) Wait() (TransferReport, error) {
	var r transferReply
	if err := t.pod.call(context.Background(), "transfer.wait", handleArgs{t.handle}, &r); err != nil {
		return TransferReport{}, err
	}
	if r.Err != nil {
		return r.TransferReport, r.Err
	}
	return r.TransferReport, nil
}

// transferReply is the report as it crosses the pipe.
type transferReply struct {
	TransferReport
	Err *Error
}
