// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

type fakeFrontends map[string]uint32

func (f fakeFrontends) Frontend(addr netip.AddrPort, _ uint8) (maps.Frontend, bool) {
	id, has := f[addr.String()]
	return maps.Frontend{Id: id}, has
}

// TestJudge: the verdict about a socket with the endpoint 10.0.0.1:5353 that was connected to
// 10.96.0.1:53 when that was a frontend of service id 1.
func TestJudge(t *testing.T) {
	endpoint := netip.MustParseAddrPort("10.0.0.1:5353")
	const udp, tcp = unix.IPPROTO_UDP, unix.IPPROTO_TCP
	record := func(service uint32, proto, flags uint8) maps.Backend {
		return maps.NewBackend(endpoint, proto, flags, service)
	}
	for _, test := range []struct {
		name     string
		owner    uint32 // 0: the address has no frontend
		all      []maps.Backend
		udp, tcp verdict
	}{
		{"nothing", 0, nil, ends, ends},
		{"the endpoint has another record", 1, []maps.Backend{record(1, udp, 0), record(1, tcp, 0)}, stays, stays},
		{"the address is another service's, with the endpoint", 2, []maps.Backend{record(2, udp, 0), record(2, tcp, 0)}, stays, stays},
		{"the same, and the old one has it too", 2, []maps.Backend{record(1, udp, 0), record(2, udp, 0), record(1, tcp, 0), record(2, tcp, 0)}, stays, stays},
		{"the address is another service's, without it", 2, []maps.Backend{record(1, udp, 0), record(1, tcp, 0)}, waits, stays},
		{"the address is nobody's", 0, []maps.Backend{record(1, udp, 0), record(1, tcp, 0)}, waits, stays},
		{"the address is nobody's, a third one has the endpoint", 0, []maps.Backend{record(3, udp, 0), record(3, tcp, 0)}, waits, ends},
		{"the endpoint left the service, a third one has it", 1, []maps.Backend{record(3, udp, 0), record(3, tcp, 0)}, ends, ends},
		{"records of the other protocol", 1, []maps.Backend{record(1, 132, 0)}, ends, ends},
		{"unready", 1, []maps.Backend{record(1, udp, maps.Unready), record(1, tcp, maps.Unready)}, ends, stays},
	} {
		s := staleSocket{protocol: udp, frontend: netip.MustParseAddrPort("10.96.0.1:53"), service: 1}
		s.peer = endpoint
		f := fakeFrontends{}
		if test.owner != 0 {
			f["10.96.0.1:53"] = test.owner
		}
		if got := judge(&s, f, test.all); got != test.udp {
			t.Errorf("%s: UDP gets verdict %d, want %d", test.name, got, test.udp)
		}
		if s.protocol = tcp; judge(&s, f, test.all) != test.tcp {
			t.Errorf("%s: TCP does not get verdict %d", test.name, test.tcp)
		}
	}
}

// The frontend that a socket was connected to is removed from service id 1 and then added to
// service id 2, whose backend is the same endpoint with another id. At last it is removed for
// good.
func TestSweepMoved(t *testing.T) {
	r := newSweepRig(t)
	kernel := r.sweeper.o.Maps
	_, at := r.server(unix.SOCK_DGRAM)
	frontend := netip.MustParseAddrPort("10.96.0.1:53")
	fd := r.socket(unix.SOCK_DGRAM)
	r.toldOf(fd, at, frontend)
	r.connect(fd, at)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// swept waits until a sweep that began after the call has ended: it destroys a witness, a
	// socket without a backend. Each call uses a new witness: its poll returns a moment before
	// it can be connected again (7.3).
	swept := func() {
		t.Helper()
		witness := r.socket(unix.SOCK_DGRAM)
		_, gone := r.server(unix.SOCK_DGRAM)
		r.told(witness, gone)
		r.connect(witness, gone)
		r.sweeper.Poke(Sweep{UDP: true})
		r.wantDestroyed("a socket that speaks to nobody", witness, 10*time.Second)
	}
	wantKept := func(what string) {
		t.Helper()
		if errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); errno != 0 || err != nil {
			t.Fatalf("%s: the socket has %v (%v)", what, unix.Errno(errno), err)
		}
		if _, err := unix.Getpeername(fd); err != nil {
			t.Fatalf("%s: the socket has no peer: %v", what, err)
		}
	}
	must(kernel.SetBackend(3, maps.NewBackend(at, unix.IPPROTO_UDP, maps.ClusterSet, 2)))
	start := time.Now()
	swept()
	if time.Since(start) < movePause { // else the machine was too slow for this check
		wantKept("the address is nobody's for a moment")
	}
	key := maps.NewFrontendKey(frontend.Addr(), frontend.Port(), unix.IPPROTO_UDP)
	must(kernel.SetFrontend(key, maps.Frontend{Id: 2, Kind: uint8(maps.ClusterIP)}))
	again := r.socket(unix.SOCK_DGRAM) // the first socket may be destroyed by now
	r.toldOf(again, at, frontend)
	r.connect(again, at)
	fd = again
	for end := time.Now().Add(2 * movePause); time.Now().Before(end); {
		swept()
		wantKept("another service has the address and the endpoint")
	}
	must(kernel.DeleteFrontend(key))
	r.sweeper.Poke(Sweep{UDP: true})
	r.wantDestroyed("a socket of which the address is nobody's", fd, 10*time.Second)
}
