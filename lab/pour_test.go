// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/lab"
)

// TestKeep: one connection carries all exchanges of a thread.
func TestKeep(t *testing.T) {
	c := newCluster(t)
	for _, network := range []string{"tcp4", "udp4"} {
		s, err := c.client.Hammer(t.Context(), network, at(c.api.Addr4(), 8080),
			lab.HammerOptions{Count: 200, Concurrency: 2, Keep: true, Records: true})
		check(t, err)
		if s.Done != 200 || s.Answered != 200 || s.Servers["api-0"] != 200 {
			t.Errorf("%s: %+v", network, s)
		}
		for _, r := range s.Records {
			if r.Connected != r.Start || r.End < r.Start {
				t.Fatalf("%s: %+v connected anew", network, r)
			}
		}
	}
	s, err := c.client.Hammer(t.Context(), "tcp4", at(c.api.Addr4(), 1), lab.HammerOptions{Count: 10, Keep: true})
	check(t, err)
	if s.Done != 1 || s.Errors[syscall.ECONNREFUSED] != 1 {
		t.Errorf("where nobody listens: %+v", s)
	}
}

// TestPour: when Pour returns, the server has read everything that was sent.
func TestPour(t *testing.T) {
	c := newCluster(t)
	const long = 30 * time.Millisecond
	p, err := c.client.Pour(t.Context(), at(c.api.Addr4(), 8080), long, 2)
	check(t, err)
	if p.Bytes < 2*64<<10 || p.Elapsed < long {
		t.Errorf("%+v", p)
	}
	if _, err := c.client.Pour(t.Context(), at(c.api.Addr4(), 1), long, 1); err == nil {
		t.Error("sent to where nobody listens")
	}
}

// TestAwait: it returns once all have answered, and not before.
func TestAwait(t *testing.T) {
	c := newCluster(t)
	late := at(c.api.Addr4(), 9191)
	started := lab.Monotonic()
	served := make(chan int64, 1)
	go func() {
		time.Sleep(30 * time.Millisecond)
		served <- lab.Monotonic()
		c.api.Serve("tcp4", 9191)
	}()
	when, err := c.client.Await(t.Context(), "tcp4", []netip.AddrPort{at(c.api.Addr4(), 8080), late}, time.Second, time.Minute)
	check(t, err)
	if at := <-served; when < at || at < started {
		t.Errorf("answered at %d, served at %d", when, at)
	}
	_, err = c.client.Await(t.Context(), "tcp4", []netip.AddrPort{late, at(c.api.Addr4(), 1)}, time.Second, 20*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "number 2") {
		t.Errorf("%v", err)
	}
}

// TestSharedAddress: pods of two nodes have the same address, and each node reaches its own
// pod.
func TestSharedAddress(t *testing.T) {
	l := lab.ForTest(t)
	shared := lab.SharedCIDR4.Addr().Next()
	for _, name := range []string{"n1", "n2"} {
		n := l.Node(name)
		server, client := n.Pod("server-"+name), n.Pod("client-"+name)
		server.AddAddr(shared)
		server.Serve("tcp4", 8080)
		if a := client.Ask("tcp4", at(shared, 8080)); a.Err != nil || a.Server != "server-"+name {
			t.Errorf("on %s: %+v", name, a)
		}
	}
}
