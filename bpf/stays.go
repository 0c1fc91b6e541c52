// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

// The ids in a socket's storage alone do not show whether its backend still serves. An address
// can move to another service port, and an endpoint can get another id in map backends, while the
// endpoint serves without interruption. So sockets that are stale by their ids are judged here by
// their addresses.

// movePause is a grace period for UDP sockets that are connected to a serving endpoint by an
// address which now resolves to another service port or to none. Such a socket is destroyed when
// the period has passed. The period is necessary because an address moves from one Service to
// another by two successive changes of objects: between them the address belongs to none.
const movePause = 500 * time.Millisecond

// verdict is the decision about a stale socket.
type verdict uint8

const (
	// stays: the endpoint serves behind the address that the socket was connected to. The socket
	// remains.
	stays verdict = iota
	// waits: the endpoint serves, but not behind that address. The socket is destroyed after
	// movePause.
	waits
	// ends: no client may send to the endpoint. The socket is destroyed.
	ends
)

// judge decides about a socket that is stale by its ids. all are the backends with the address
// and port of the socket's peer.
func judge(s *staleSocket, frontends frontends, all []maps.Backend) verdict {
	owner := uint32(0)
	if v, has := frontends.Frontend(s.frontend, s.protocol); has {
		owner = v.Id
	}
	serves := ends
	for _, be := range all {
		if be.Protocol != s.protocol || s.protocol == unix.IPPROTO_UDP && be.Flags&maps.Unready != 0 {
			continue
		}
		// A TCP connection is valid as long as its endpoint, even if another service port has the
		// frontend's address now.
		if be.ServiceId == owner || s.protocol == unix.IPPROTO_TCP && be.ServiceId == s.service {
			return stays
		}
		if s.protocol == unix.IPPROTO_UDP && owner != s.service {
			serves = waits
		}
	}
	return serves
}

// frontends looks up the frontend of an address; maps.Kernel implements it.
type frontends interface {
	Frontend(addr netip.AddrPort, protocol uint8) (maps.Frontend, bool)
}

// confirm returns the sockets to destroy now, and remembers those that wait.
func (s *Sweeper) confirm(all []staleSocket, now time.Time) []staleSocket {
	if len(all) == 0 {
		clear(s.waiting)
		return nil
	}
	asked := make(map[netip.AddrPort][]maps.Backend, len(all))
	for i := range all {
		asked[all[i].peer] = nil
	}
	s.o.Maps.BackendsAt(asked)
	waiting := map[uint64]time.Time{}
	kept := all[:0]
	for _, sock := range all {
		switch judge(&sock, s.o.Maps, asked[sock.peer]) {
		case stays:
			continue
		case waits:
			since, known := s.waiting[sock.id.cookie()]
			if !known {
				since = now
			}
			if now.Sub(since) < movePause {
				waiting[sock.id.cookie()] = since
				continue
			}
		}
		kept = append(kept, sock)
	}
	s.waiting = waiting
	return kept
}
