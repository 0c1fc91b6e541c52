// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net/netip"
	"time"
)

// TransferOptions are the options of a transfer over one TCP connection.
type TransferOptions struct {
	// Up is the number of bytes that the client sends first, Down the number of bytes that
	// the server sends afterwards. Both sides compute checksums of the bytes sent and received.
	Up, Down int64
	// Pause is the number of bytes, sent and received, after which the client stops until
	// Resume. 0 means no pause.
	Pause int64
	// Timeout is how long the transfer may stall. 0 means twenty seconds.
	Timeout time.Duration
}

// TransferReport is the result of a transfer.
type TransferReport struct {
	// Up and Down are the numbers of bytes that were received with the sender's checksum.
	Up, Down int64
	Server   string
	// ClientSeen is the client address that the server saw.
	ClientSeen netip.AddrPort
	// ClientMTU and ServerMTU are each side's path MTU in bytes, as its kernel reported it
	// after the last byte was sent. 0 means that the side sent nothing.
	ClientMTU, ServerMTU int
	Elapsed              time.Duration
}

type transferArgs struct {
	Dst     netip.AddrPort
	Options TransferOptions
}

// Transferring is a transfer that runs concurrently with its caller.
type Transferring struct {
	pod    *Pod
	handle uint64
}

// StartTransfer connects to a server and begins the transfer. The caller must call Wait.
func (p *Pod) StartTransfer(dst netip.AddrPort, opts TransferOptions) (*Transferring, error) {
	t := &Transferring{pod: p}
	return t, p.call(context.Background(), "transfer", transferArgs{dst, opts}, &t.handle)
}

// Bytes returns how many bytes the client has sent and received so far.
func (t *Transferring) Bytes() (n int64, err error) {
	err = t.pod.call(context.Background(), "transfer.bytes", handleArgs{t.handle}, &n)
	return n, err
}

// Paused waits until the client has stopped at Pause, or has failed.
func (t *Transferring) Paused() error {
	return t.pod.call(context.Background(), "transfer.paused", handleArgs{t.handle}, &none{})
}

// Resume continues a paused transfer.
func (t *Transferring) Resume() error {
	return t.pod.call(context.Background(), "transfer.resume", handleArgs{t.handle}, &none{})
}

// Wait waits for the end of the transfer. The error is a failure of the connection, a timeout
// or a wrong checksum. The report is valid with an error too: it covers the transfer until
// then.
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

// transferReply is the report on the pipe from the agent.
type transferReply struct {
	TransferReport
	Err *Error
}
