// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"net/netip"
	"slices"
	"sync"

	"shunt/lb"
	"shunt/maps"
)

// mostAPIAddresses bounds the reserved addresses of API servers: a host name may resolve to
// new addresses again and again.
const mostAPIAddresses = 64

// reserved collects the addresses that no Service may have on this node.
type reserved struct {
	store *lb.Store

	mu  sync.Mutex
	now lb.Reserved
}

// newReserved reserves the addresses at which the daemon will listen, and those of the hook
// check. With --external-ips=false it also makes the store refuse all externalIPs.
func newReserved(store *lb.Store, c *Config) *reserved {
	r := &reserved{store: store, now: lb.Reserved{NoExternalIPs: !c.ExternalIPs, Probes: maps.HookCheckAddrs[:]}}
	for _, a := range []netip.AddrPort{c.healthz, c.metrics, c.probes} {
		if a.IsValid() && a.Port() != 0 {
			r.now.Listens = append(r.now.Listens, a)
		}
	}
	store.SetReserved(r.now)
	return r
}

// useAPI reserves an address of the API server. It may be called from any goroutine.
func (r *reserved) useAPI(a netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.now.API, a) {
		return
	}
	first := max(0, len(r.now.API)+1-mostAPIAddresses) // the oldest is dropped
	r.now.API = append(slices.Clone(r.now.API[first:]), a)
	r.store.SetReserved(r.now)
}
