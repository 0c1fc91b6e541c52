// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxHeld bounds the open connections of one agent. A process that may not raise its limit of
// open files may have 20,000 or fewer.
const maxHeld = 100_000

// held is the agent's end of a Held.
type held struct {
	mu      sync.Mutex // one question at a time
	threads int
	conns   []heldConn
}

// heldConn is one connection. fd is -1 after it has failed.
type heldConn struct {
	*target
	fd     int
	name   string // the first part of its tokens
	asked  int
	tries  int
	server string
	seen   string // the client address that the server saw first
}

// tally is what one thread counted.
type tally struct {
	HeldSummary
	buf []byte
}

func newTally() *tally {
	counts := HeldSummary{Servers: map[string]int{}, Clients: map[netip.Addr]int{}, Errors: map[syscall.Errno]int{}}
	return &tally{counts, make([]byte, 2048)}
}

func (t *tally) failed(op string, err error) {
	e := failure(op, err)
	if e.Errno == 0 {
		e.Errno = unix.EBADMSG
	}
	t.Errors[e.Errno]++
	if t.FirstError == "" {
		t.FirstError = e.Error()
	}
}

func (a *agent) hold(_ context.Context, args holdArgs) (holdReply, error) {
	o := args.Options
	if n := o.Count * len(args.Dsts); n <= 0 || n > maxHeld {
		return holdReply{}, fmt.Errorf("%d connections: one to %d are possible", n, maxHeld)
	}
	h := &held{threads: o.Concurrency}
	if h.threads <= 0 {
		h.threads = 4
	}
	// Ordered by source port: connections that share a port are made one after the other.
	for i := range o.Count {
		for j, dst := range args.Dsts {
			opts := RequestOptions{Timeout: o.Timeout}
			if o.FirstPort != 0 {
				opts.Local = netip.AddrPortFrom(anyAddr(args.Network, 0).Addr(), o.FirstPort+uint16(i))
				if dst.Addr().Is4() {
					opts.Local = netip.AddrPortFrom(netip.IPv4Unspecified(), opts.Local.Port())
				}
			}
			t, err := newTarget(requestArgs{args.Network, dst, opts})
			if err != nil {
				return holdReply{}, err
			}
			t.share = true
			h.conns = append(h.conns, heldConn{target: t, fd: -1, tries: o.Tries, name: fmt.Sprintf("%d.%d.%s", i, j, t.token)})
		}
	}
	first := h.each(func(c *heldConn, t *tally) {
		if op, err := c.begin(); err != nil {
			t.failed(op, err)
			return
		}
		c.ask(t)
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nextHandle()
	a.held[n] = h
	return holdReply{n, first}, nil
}

// begin opens and connects the socket. On failure, op is the call that failed.
func (c *heldConn) begin() (op string, err error) {
	fd, op, err := c.open()
	if err != nil {
		return op, err
	}
	if err := c.connect(fd); err != nil {
		unix.Close(fd)
		return "connect to " + fromSockaddr(c.sa).String(), err
	}
	c.fd = fd
	return "", nil
}

// each calls do for every connection, from several threads, and returns the sum of their
// tallies.
func (h *held) each(do func(*heldConn, *tally)) HeldSummary {
	h.mu.Lock()
	defer h.mu.Unlock()
	tallies := make([]*tally, h.threads)
	var next atomic.Int64
	var wg sync.WaitGroup
	for i := range tallies {
		tallies[i] = newTally()
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= len(h.conns) {
					return
				}
				do(&h.conns[n], tallies[i])
			}
		})
	}
	wg.Wait()
	sum := newTally().HeldSummary
	for _, t := range tallies {
		sum.add(&t.HeldSummary)
	}
	return sum
}

func (s *HeldSummary) add(t *HeldSummary) {
	s.Asked += t.Asked
	s.Answered += t.Answered
	for k, n := range t.Servers {
		s.Servers[k] += n
	}
	for k, n := range t.Clients {
		s.Clients[k] += n
	}
	for k, n := range t.Errors {
		s.Errors[k] += n
	}
	if s.FirstError == "" {
		s.FirstError = t.FirstError
	}
}

// ask makes one exchange. It closes a connection that fails.
func (c *heldConn) ask(t *tally) {
	if c.fd < 0 {
		return
	}
	t.Asked++
	c.asked++
	token := c.name + "." + strconv.Itoa(c.asked)
	c.request = append(append(c.request[:0], token...), '\n')
	op, err := c.exchange(token, t)
	for try := 1; try < c.tries && errors.Is(err, unix.ETIMEDOUT) && c.kind == unix.SOCK_DGRAM; try++ {
		op, err = c.exchange(token, t)
	}
	if err == nil {
		t.Answered++
		return
	}
	t.failed(op+" at "+fromSockaddr(c.sa).String(), err)
	unix.Close(c.fd)
	c.fd = -1
}

func (c *heldConn) exchange(token string, t *tally) (op string, err error) {
	if err := c.send(c.fd); err != nil {
		return "send", err
	}
	return "recv", c.answered(token, t)
}

// answered waits for the answer to token. Over UDP it skips answers to earlier requests of
// this socket that timed out.
func (c *heldConn) answered(token string, t *tally) error {
	for {
		n, err := c.receive(c.fd, t.buf)
		if err != nil {
			return err
		}
		words, ok := parseAnswer(t.buf[:n])
		if ok && c.kind == unix.SOCK_DGRAM && string(words[0]) != token && bytes.HasPrefix(words[0], []byte(c.name+".")) {
			continue
		}
		if !ok || string(words[0]) != token {
			return fmt.Errorf("asked %q, heard %q", token, t.buf[:min(n, 120)])
		}
		if c.server == "" {
			c.server, c.seen = string(words[1]), string(words[2])
		}
		if c.server != string(words[1]) || c.seen != string(words[2]) {
			return unix.ESTALE
		}
		t.Servers[c.server]++
		if seen, err := netip.ParseAddrPort(string(words[2])); err == nil {
			t.Clients[seen.Addr()]++
		}
		return nil
	}
}

func (a *agent) findHeld(n uint64) (*held, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.held[n]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("no connections are held by %d", n)
}

func (a *agent) holdAsk(_ context.Context, args handleArgs) (HeldSummary, error) {
	h, err := a.findHeld(args.Handle)
	if err != nil {
		return HeldSummary{}, err
	}
	return h.each((*heldConn).ask), nil
}

func (a *agent) holdClose(_ context.Context, args heldCloseArgs) (none, error) {
	h, err := a.findHeld(args.Handle)
	if err != nil {
		return none{}, err
	}
	h.each(func(c *heldConn, _ *tally) {
		if c.fd < 0 {
			return
		}
		if args.Reset && c.kind == unix.SOCK_STREAM {
			// If this fails, close sends a FIN instead of a RST.
			_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &abortOnClose)
		}
		unix.Close(c.fd)
		c.fd = -1
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.held, args.Handle)
	return none{}, nil
}
