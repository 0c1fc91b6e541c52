// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// transferTimeout is how long a transfer may stall if no timeout is set.
	transferTimeout = 20 * time.Second
	// maxTransfer bounds the bytes of one transfer in one direction.
	maxTransfer = 8 << 30
	blockSize   = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// order is a request line by which a client makes a server send bytes (give) or receive bytes.
type order struct {
	give  bool
	bytes int64
}

func parseOrder(line []byte) (o order, ok bool) {
	verb, number, found := strings.Cut(string(line), " ")
	if !found || verb != "!take" && verb != "!give" {
		return o, false
	}
	n, err := strconv.ParseInt(number, 10, 64)
	return order{verb == "!give", n}, err == nil && n > 0 && n <= maxTransfer
}

// stream is a blocking socket with a checksum and a count of the bytes sent and received.
type stream struct {
	fd    int
	ahead []byte // read already, together with the order
	sum   uint32
	moved *atomic.Int64
	// pause is called once: when at bytes have been moved, and before the next byte is moved.
	pause func()
	at    int64
}

// step returns the number of bytes of the next system call: never beyond the point of the pause.
func (s *stream) step(left int64) int64 {
	n := min(left, blockSize)
	if s.pause == nil {
		return n
	}
	before := s.at - s.moved.Load()
	if before <= 0 {
		s.pause()
		s.pause = nil
		return n
	}
	return min(n, before)
}

func (s *stream) Read(p []byte) (int, error) {
	if len(s.ahead) > 0 {
		n := copy(p, s.ahead)
		s.ahead = s.ahead[n:]
		return n, nil
	}
	for {
		n, err := unix.Read(s.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, timedOut(err)
		case n == 0:
			return 0, io.ErrUnexpectedEOF
		}
		return n, nil
	}
}

func (s *stream) Write(p []byte) (n int, err error) {
	for n < len(p) {
		m, err := unix.Write(s.fd, p[n:])
		if err != nil && err != unix.EINTR {
			return n, timedOut(err)
		}
		n += max(m, 0)
	}
	return n, nil
}

// give sends bytes. No two blocks are the same.
func (s *stream) give(bytes int64) error {
	block := make([]byte, blockSize)
	for i := range block {
		block[i] = byte(i * 131 >> 3)
	}
	s.sum = 0
	for number := uint64(0); bytes > 0; number++ {
		binary.BigEndian.PutUint64(block, number)
		part := block[:s.step(bytes)]
		s.sum = crc32.Update(s.sum, castagnoli, part)
		n, err := s.Write(part)
		s.moved.Add(int64(n))
		if err != nil {
			return err
		}
		bytes -= int64(len(part))
	}
	return nil
}

// take receives bytes.
func (s *stream) take(bytes int64) error {
	block := make([]byte, blockSize)
	s.sum = 0
	for bytes > 0 {
		n, err := s.Read(block[:s.step(bytes)])
		if err != nil {
			return err
		}
		s.sum = crc32.Update(s.sum, castagnoli, block[:n])
		s.moved.Add(int64(n))
		bytes -= int64(n)
	}
	return nil
}

// pathMTU returns the kernel's path MTU for the connection, 0 if it reports none.
func pathMTU(fd int) int {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return int(info.Pmtu)
}

// handOver moves a connection that transfers bytes to a goroutine: the server's thread
// continues with the other connections.
func (s *server) handOver(fd int, c *conn, o order, ahead []byte) {
	delete(s.conns, fd)
	// Neither call fails for a descriptor that is open and in the set.
	_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	_ = unix.SetNonblock(fd, false)
	s.moving.Store(fd, true)
	ahead = bytes.Clone(ahead)
	s.bulk.Go(func() {
		defer unix.Close(fd)
		defer s.moving.Delete(fd)
		if setTimeouts(fd, transferTimeout) != nil {
			return
		}
		st := &stream{fd: fd, ahead: ahead, moved: &atomic.Int64{}}
		for ok := true; ok; o, ok = st.nextOrder() {
			if s.carryOut(st, c, o) != nil {
				return // the client sees that the connection ends
			}
		}
	})
}

// endBulk shuts down the connections that were handed over and waits for their goroutines.
func (s *server) endBulk() {
	s.moving.Range(func(fd, _ any) bool {
		_ = unix.Shutdown(fd.(int), unix.SHUT_RDWR)
		return true
	})
	s.bulk.Wait()
}

func (s *server) carryOut(st *stream, c *conn, o order) error {
	move := st.take
	if o.give {
		move = st.give
	}
	if err := move(o.bytes); err != nil {
		return err
	}
	_, err := fmt.Fprintf(st, "%08x/%d %s %s %s\n", st.sum, pathMTU(st.fd), s.name, c.client, c.own)
	return err
}

// line reads one line and returns it without its newline.
func (s *stream) line() ([]byte, error) {
	var all []byte
	one := make([]byte, 1)
	for len(all) < maxLine {
		if _, err := s.Read(one); err != nil {
			return all, err
		}
		if one[0] == '\n' {
			return all, nil
		}
		all = append(all, one[0])
	}
	return all, unix.EMSGSIZE
}

func (s *stream) nextOrder() (order, bool) {
	line, err := s.line()
	if err != nil {
		return order{}, false
	}
	return parseOrder(line)
}

// transfer is the agent's end of a Transferring.
type transfer struct {
	report transferReply // complete once done is closed
	moved  atomic.Int64
	done   chan struct{}
	paused chan struct{} // closed at the pause
	resume chan struct{}
	once   sync.Once
}

func (x *transfer) pause() {
	close(x.paused)
	<-x.resume
}

func (a *agent) transfer(_ context.Context, args transferArgs) (uint64, error) {
	o := args.Options
	if o.Timeout <= 0 {
		o.Timeout = transferTimeout
	}
	if o.Up < 0 || o.Down < 0 || o.Up > maxTransfer || o.Down > maxTransfer {
		return 0, fmt.Errorf("%d and %d bytes: up to %d are possible", o.Up, o.Down, int64(maxTransfer))
	}
	t, err := newTarget(requestArgs{"tcp", args.Dst, RequestOptions{Timeout: o.Timeout}})
	if err != nil {
		return 0, err
	}
	fd, op, err := t.open()
	if err != nil {
		return 0, failure(op, err)
	}
	if err := t.connect(fd); err != nil {
		unix.Close(fd)
		return 0, failure("connect", err)
	}
	x := &transfer{done: make(chan struct{}), paused: make(chan struct{}), resume: make(chan struct{})}
	s := &stream{fd: fd, moved: &x.moved, at: o.Pause}
	if o.Pause > 0 {
		s.pause = x.pause
	}
	go func() {
		defer close(x.done)
		defer unix.Close(fd)
		start := time.Now()
		x.report.Err = failure("transfer", x.run(s, o))
		x.report.Elapsed = time.Since(start)
	}()
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.nextHandle()
	a.moved[h] = x
	return h, nil
}

func (x *transfer) run(s *stream, o TransferOptions) error {
	r := &x.report
	if o.Up > 0 {
		if _, err := fmt.Fprintf(s, "!take %d\n", o.Up); err != nil {
			return err
		}
		if err := s.give(o.Up); err != nil {
			return err
		}
		if _, err := r.settle(s); err != nil {
			return err
		}
		r.Up, r.ClientMTU = o.Up, pathMTU(s.fd)
	}
	if o.Down > 0 {
		if _, err := fmt.Fprintf(s, "!give %d\n", o.Down); err != nil {
			return err
		}
		if err := s.take(o.Down); err != nil {
			return err
		}
		mtu, err := r.settle(s)
		if err != nil {
			return err
		}
		r.Down, r.ServerMTU = o.Down, mtu
	}
	return nil
}

// settle reads the server's answer and compares checksums. It returns the server's path
// MTU.
func (r *TransferReport) settle(s *stream) (mtu int, err error) {
	line, err := s.line()
	if err != nil {
		return 0, err
	}
	words, ok := parseAnswer(line)
	if !ok {
		return 0, fmt.Errorf("not an answer of a lab server: %q", line)
	}
	var sum uint32
	if _, err := fmt.Sscanf(string(words[0]), "%x/%d", &sum, &mtu); err != nil {
		return 0, fmt.Errorf("not an answer to an order: %q", line)
	}
	r.Server = string(words[1])
	r.ClientSeen, _ = netip.ParseAddrPort(string(words[2]))
	if sum != s.sum {
		return 0, fmt.Errorf("the server's sum is %08x, the client's %08x", sum, s.sum)
	}
	return mtu, nil
}

func (a *agent) findTransfer(h uint64) (*transfer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x := a.moved[h]; x != nil {
		return x, nil
	}
	return nil, fmt.Errorf("no transfer %d", h)
}

func (a *agent) transferBytes(_ context.Context, args handleArgs) (int64, error) {
	x, err := a.findTransfer(args.Handle)
	if err != nil {
		return 0, err
	}
	return x.moved.Load(), nil
}

func (a *agent) transferPaused(_ context.Context, args handleArgs) (none, error) {
	x, err := a.findTransfer(args.Handle)
	if err != nil {
		return none{}, err
	}
	select {
	case <-x.paused:
		return none{}, nil
	case <-x.done:
		if x.report.Err != nil {
			return none{}, x.report.Err
		}
		return none{}, errors.New("the transfer ended before its pause")
	}
}

func (a *agent) transferResume(_ context.Context, args handleArgs) (none, error) {
	x, err := a.findTransfer(args.Handle)
	if err == nil {
		x.once.Do(func() { close(x.resume) })
	}
	return none{}, err
}

func (a *agent) transferWait(_ context.Context, args handleArgs) (transferReply, error) {
	x, err := a.findTransfer(args.Handle)
	if err != nil {
		return transferReply{}, err
	}
	<-x.done
	return x.report, nil
}
