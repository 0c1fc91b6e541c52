// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"shunt/lab"
)

// TestRelay: a process of a node reaches the relay's upstream, and nothing once the relay
// is closed.
func TestRelay(t *testing.T) {
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer upstream.Close()
	go func() {
		for {
			c, err := upstream.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	node := lab.ForTest(t).Node("n1")
	r, err := newRelay(node, upstream.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := node.DialContext(t.Context(), "tcp", r.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	heard := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, heard); err != nil || string(heard) != "hello" {
		t.Errorf("%q, %v", heard, err)
	}
	r.close()
	if n, err := c.Read(heard); err == nil {
		t.Errorf("%d bytes through a relay that was closed", n)
	}
	if c, err := node.DialContext(t.Context(), "tcp", r.addr()); err == nil {
		c.Close()
		t.Error("connected to a relay that was closed")
	}
}

// TestNoRedirects: a namespace neither sends nor accepts ICMP redirects.
func TestNoRedirects(t *testing.T) {
	node := lab.ForTest(t).Node("n1")
	if err := noRedirects(node.Do); err != nil {
		t.Fatal(err)
	}
	err := node.Do(func() error {
		for _, key := range []string{"all/send_redirects", "eth0/send_redirects", "all/accept_redirects", "eth0/accept_redirects"} {
			if value, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + key); err != nil || strings.TrimSpace(string(value)) != "0" {
				t.Errorf("%s is %q, %v", key, value, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPackets: an exchange is counted in both directions, at the client.
func TestPackets(t *testing.T) {
	node := lab.ForTest(t).Node("n1")
	server, client := node.Pod("server"), node.Pod("client")
	server.Serve("udp4", backendPort)
	before, err := packetsOf(client)
	if err != nil {
		t.Fatal(err)
	}
	const exchanges = 50
	s, err := client.Hammer(t.Context(), "udp4", netip.AddrPortFrom(server.Addr4(), backendPort), lab.HammerOptions{Count: exchanges})
	if err != nil || s.Answered != exchanges {
		t.Fatalf("%v, %+v", err, s)
	}
	after, err := packetsOf(client)
	if n := after - before; err != nil || n < 2*exchanges || n > 2*exchanges+20 { // ARP adds packets
		t.Errorf("%v packets of %d exchanges, %v", n, exchanges, err)
	}
}

// TestAfterwards: the error of an interrupted run says that it was interrupted, and what
// was not removed.
func TestAfterwards(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	failed, left := errors.New("failed"), errors.New("left")
	for _, c := range []struct {
		ctx          context.Context
		err, cleanUp error
		is, isNot    error
	}{
		{t.Context(), nil, nil, nil, nil},
		{t.Context(), failed, nil, failed, nil},
		{t.Context(), failed, left, failed, context.Canceled},
		{t.Context(), failed, left, left, nil},
		{ended, failed, nil, context.Canceled, failed},
		{ended, failed, left, errNotRemoved, context.Canceled},
		{ended, errNotRemoved, nil, errNotRemoved, context.Canceled},
	} {
		err := afterwards(c.ctx, c.err, c.cleanUp)
		if !errors.Is(err, c.is) || c.isNot != nil && errors.Is(err, c.isNot) {
			t.Errorf("%v with %v: %v", c.err, c.cleanUp, err)
		}
	}
}

// TestSpentBy: the time of a process, and of its children that have ended.
func TestSpentBy(t *testing.T) {
	before, err := spentBy(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for now := before; now < before+0.05; {
		if now, err = spentBy(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := spentBy(1 << 30); err == nil {
		t.Error("a process that there is not has spent time")
	}
}
