// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"encoding/binary"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// sweepRig is a sweeper with maps in which no backend serves, and sockets of the test's
// process. The test writes their storage as the connect hook would.
type sweepRig struct {
	t       *testing.T
	set     *maps.Set
	sweeper *Sweeper
}

func newSweepRig(t *testing.T) *sweepRig {
	t.Helper()
	set, kernel := openMaps(t, filepath.Join(bpffs(t), "shunt"))
	r := &sweepRig{t, set, NewSweeper(SweeperOptions{Set: set, Maps: kernel, Cgroup: cgroup(t), Log: zap.NewNop()})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- r.sweeper.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

// server returns a bound socket on loopback to which clients can connect.
func (r *sweepRig) server(kind int) (fd int, at netip.AddrPort) {
	r.t.Helper()
	fd = r.socket(kind)
	sa := unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	err := unix.Bind(fd, sa)
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 8)
	}
	if err == nil {
		sa, err = unix.Getsockname(fd)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	in := sa.(*unix.SockaddrInet4)
	return fd, netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
}

func (r *sweepRig) socket(kind int) int {
	r.t.Helper()
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// told writes the storage of a connect() to a backend that serves no more.
func (r *sweepRig) told(fd int, backend netip.AddrPort) {
	r.t.Helper()
	r.toldOf(fd, backend, netip.MustParseAddrPort("0.0.0.0:0"))
}

// toldOf does the same with a frontend of service id 1.
func (r *sweepRig) toldOf(fd int, backend, frontend netip.AddrPort) {
	r.t.Helper()
	flow := maps.SockFlow{BackendId: 1, ServiceId: 1, Used: 1}
	flow.FrontendAddr.B = frontend.Addr().As16()
	flow.FrontendPort = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, frontend.Port()))
	flow.BackendAddr.B = backend.Addr().As16()
	flow.BackendPort = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, backend.Port()))
	if err := r.set.Map(sweepMapSockPeer).Put(int32(fd), flow); err != nil {
		r.t.Fatalf("write a socket's storage: %v", err)
	}
}

func (r *sweepRig) connect(fd int, to netip.AddrPort) {
	r.t.Helper()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		r.t.Fatal(err)
	}
}

// wantDestroyed waits for the socket's error.
func (r *sweepRig) wantDestroyed(what string, fd int, within time.Duration) {
	r.t.Helper()
	poll := []unix.PollFd{{Fd: int32(fd)}} // poll reports errors and hang-ups without being asked
	for end := time.Now().Add(within); ; {
		n, err := unix.Poll(poll, int(time.Until(end).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			r.t.Errorf("%s: not destroyed within %v (%v)", what, within, err)
			return
		}
		break
	}
	if errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || unix.Errno(errno) != unix.ECONNABORTED {
		r.t.Errorf("%s: the socket's error is %v (%v), want ECONNABORTED", what, unix.Errno(errno), err)
	}
}

// A socket that is inside connect() during sweeps has storage and no peer yet. Once it has a
// peer it is found, without another request.
func TestSweepInsideConnect(t *testing.T) {
	for _, p := range []struct {
		name string
		kind int
		what Sweep
	}{{"TCP", unix.SOCK_STREAM, Sweep{TCP: true}}, {"UDP", unix.SOCK_DGRAM, Sweep{UDP: true}}} {
		t.Run(p.name, func(t *testing.T) {
			r := newSweepRig(t)
			_, at := r.server(p.kind)
			witness, late, later := r.socket(p.kind), r.socket(p.kind), r.socket(p.kind)
			for _, fd := range []int{witness, late, later} {
				r.told(fd, at)
			}
			r.connect(witness, at)
			r.sweeper.Poke(p.what)
			r.wantDestroyed("a connected socket", witness, 10*time.Second) // a sweep has taken place
			r.connect(late, at)
			r.wantDestroyed("a socket that was inside connect()", late, 20*time.Second)
			r.connect(later, at)
			r.wantDestroyed("another one that took longer", later, 20*time.Second)
		})
	}
}

// Half-closed connections are found in each of their states.
func TestSweepHalfClosed(t *testing.T) {
	r := newSweepRig(t)
	server, at := r.server(unix.SOCK_STREAM)
	clients := map[string]int{}
	for _, state := range []string{"established", "FIN_WAIT2", "CLOSE_WAIT"} {
		fd := r.socket(unix.SOCK_STREAM)
		r.told(fd, at)
		r.connect(fd, at)
		accepted, _, err := unix.Accept4(server, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(accepted) })
		switch state {
		case "FIN_WAIT2":
			err = unix.Shutdown(fd, unix.SHUT_WR)
		case "CLOSE_WAIT":
			err = unix.Shutdown(accepted, unix.SHUT_WR)
		}
		if err != nil {
			t.Fatal(err)
		}
		clients[state] = fd
	}
	r.sweeper.Poke(Sweep{TCP: true})
	for state, fd := range clients {
		r.wantDestroyed(state, fd, 10*time.Second)
	}
}
