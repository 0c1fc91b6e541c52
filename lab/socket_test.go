// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// check fails the test if any of the calls before it failed.
func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestRawUDP(t *testing.T) {
	c := newCluster(t)
	s := c.client.Socket("udp6")
	check(t, s.Bind(netip.MustParseAddrPort("[::]:7000")))
	for _, dst := range []netip.AddrPort{
		at(c.web.Addr6(), 8080),
		at(netip.AddrFrom16(c.api.Addr4().As16()), 8080),
	} {
		check(t, s.SendTo(dst, []byte("hello\n")))
		data, from, err := s.Recv(2 * time.Second)
		check(t, err)
		if from != dst || !strings.HasPrefix(string(data), "hello ") || !strings.Contains(string(data), ":7000 ") {
			t.Errorf("%q from %v, want an answer from %v to port 7000", data, from, dst)
		}
	}
	if _, err := s.PeerName(); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("peer of an unconnected socket: %v, want ENOTCONN", err)
	}
	if _, _, err := s.Recv(10 * time.Millisecond); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("%v, want ETIMEDOUT", err)
	}

	check(t, s.Connect(at(c.web.Addr6(), 1)), s.Send([]byte("nobody there")))
	if events, err := s.Poll(1, 2*time.Second); err != nil || events&8 == 0 {
		t.Errorf("poll: %#x, %v; want POLLERR", events, err)
	}
	if errno, err := s.SockError(); err != nil || errno != syscall.ECONNREFUSED {
		t.Errorf("SO_ERROR %v, %v; want ECONNREFUSED", errno, err)
	}
	if errno, err := s.SockError(); err != nil || errno != 0 {
		t.Errorf("SO_ERROR again: %v, %v; want none", errno, err)
	}
	check(t, s.Close())
	if err := s.Send(nil); err == nil {
		t.Error("a closed socket sends")
	}
}

func TestRawTCP(t *testing.T) {
	c := newCluster(t)
	s := c.client.Socket("tcp4")
	dst := at(c.api.Addr4(), 8080)
	check(t, s.Connect(dst), s.Send([]byte("one\ntwo")), s.Send([]byte("\n")))
	peer, err := s.PeerName()
	check(t, err)
	local, err := s.LocalName()
	check(t, err)
	if peer != dst || local.Addr() != c.client.Addr4() {
		t.Errorf("%v to %v, want %v to %v", local, peer, c.client.Addr4(), dst)
	}
	want := "one api-0 " + local.String() + " " + dst.String() + "\n" + "two api-0 " + local.String() + " " + dst.String() + "\n"
	var got []byte
	for len(got) < len(want) {
		data, _, err := s.Recv(2 * time.Second)
		check(t, err)
		if len(data) == 0 {
			break
		}
		got = append(got, data...)
	}
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if cookie, err := s.Cookie(); cookie == 0 || err != nil {
		t.Errorf("cookie %d, %v", cookie, err)
	}
	// A call in flight does not block other calls in the same pod.
	waiting := make(chan error, 1)
	go func() { _, _, err := s.Recv(time.Second); waiting <- err }()
	if a := c.client.Ask("tcp", dst); a.Err != nil {
		t.Error(a.Err)
	}
	if err := <-waiting; !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("%v, want ETIMEDOUT", err)
	}
	check(t, s.Close())
}
