// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"shunt/lab"
)

// relay lets processes of a node reach the API server, to which the node's network has no
// route.
type relay struct {
	listener net.Listener
	upstream string // HOST:PORT, reached from this process's own network
	cancel   context.CancelFunc
	ctx      context.Context
	wg       sync.WaitGroup
}

const relayDialTimeout = 10 * time.Second

func newRelay(n *lab.Node, upstream string) (*relay, error) {
	l, err := n.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		return nil, fmt.Errorf("let node %s reach the API server: %w", n.Name(), err)
	}
	r := &relay{listener: l, upstream: upstream}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.wg.Go(r.serve)
	return r, nil
}

// addr returns the address that the node's processes connect to.
func (r *relay) addr() string { return r.listener.Addr().String() }

// close ends all connections and waits for the goroutines that copy them.
func (r *relay) close() {
	r.cancel()
	r.listener.Close()
	r.wg.Wait()
}

func (r *relay) serve() {
	for {
		near, err := r.listener.Accept()
		if err != nil {
			return // closed
		}
		r.wg.Go(func() { r.pass(near) })
	}
}

// pass copies in both directions until either side ends.
func (r *relay) pass(near net.Conn) {
	defer near.Close()
	d := net.Dialer{Timeout: relayDialTimeout}
	far, err := d.DialContext(r.ctx, "tcp", r.upstream)
	if err != nil {
		return // the client sees that its connection ends, and tries again
	}
	defer far.Close()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		near.Close()
		far.Close()
	})()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		both.Go(func() {
			defer cancel()
			_, _ = io.Copy(way[0], way[1]) // the two ends handle errors
		})
	}
	both.Wait()
}
