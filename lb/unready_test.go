// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"testing"

	"shunt/maps"
)

// TestUnreadyRecords checks that an endpoint that is listed and serves no client keeps the TCP
// backend that it has, until it is removed, is ready again, or others need the room, and that it
// gets no new backend.
func TestUnreadyRecords(t *testing.T) {
	r := newGuardedRig(t)
	has := func(what, addr string, want bool, flags uint8) {
		t.Helper()
		r.clock.advance(grace)
		r.mustStep()
		for _, be := range r.dump().Backends {
			if be.AddrPort() == netip.MustParseAddrPort(addr) {
				if !want || be.Flags != flags {
					t.Errorf("%s: the record of %s has flags %#x; wanted: %v, %#x", what, addr, be.Flags, want, flags)
				}
				return
			}
		}
		if want {
			t.Errorf("%s: %s has no record", what, addr)
		}
	}
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP"))
	r.store.SetSlice(slice("a", "a", "p:80/TCP", "10.0.0.1", "10.0.0.2", "10.0.0.3 -"))
	has("ready", "10.0.0.2:80", true, maps.ClusterSet)
	has("never ready", "10.0.0.3:80", false, 0)
	r.store.SetSlice(slice("a", "a", "p:80/TCP", "10.0.0.1", "10.0.0.2 -"))
	has("unready", "10.0.0.2:80", true, maps.Unready)
	r.start()
	has("unready, and a new daemon", "10.0.0.2:80", true, maps.Unready)
	r.store.SetSlice(slice("a", "a", "p:80/TCP", "10.0.0.1", "10.0.0.2"))
	has("ready again", "10.0.0.2:80", true, maps.ClusterSet)
	r.store.SetSlice(slice("a", "a", "p:80/TCP", "10.0.0.1", "10.0.0.2 terminating"))
	has("unready, and terminates", "10.0.0.2:80", true, maps.Unready|maps.Terminating)
	r.store.SetSlice(slice("a", "a", "p:80/TCP", "10.0.0.1"))
	has("gone", "10.0.0.2:80", false, 0)
}
