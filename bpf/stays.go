// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

// What ids say of a socket is not all: an address can go to another service, and an endpoint can
// get another record, while the endpoint serves all the time. Here sockets are judged by
// addresses.

// movePause is how long an address may lead elsewhere, or nowhere, before the UDP sockets that
// were connected by it to an endpoint which still serves are destroyed. An address goes from one
// Service to another by two changes of objects, one after the other.
const movePause = 500 * time.Millisecond

// verdict says what becomes of a socket.
type verdict uint8

const (
	// stays: the endpoint serves at the address that the socket was connected to.
	stays verdict = iota
	// waits: the endpoint serves, but not at that address.
	waits
	// ends: no client may send to the endpoint.
	ends
)

// judge says what becomes of a socket that is stale by its ids. all has the records of its
// backend's address.
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
		// A TCP connection lasts as long as its endpoint, whoever has the address.
		if be.ServiceId == owner || s.protocol == unix.IPPROTO_TCP && be.ServiceId == s.service {
			return stays
		}
		if s.protocol == unix.IPPROTO_UDP && owner != s.service {
			serves = waits
		}
	}
	return serves
}

// frontends says who has an address now; maps.Kernel does.
type frontends interface {
	Frontend(addr netip.AddrPort, protocol uint8) (maps.Service, bool)
}

// confirm returns the sockets among these that are to be destroyed now.
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
