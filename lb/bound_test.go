// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"testing"

	"shunt/maps"
)

// boundAddr returns the addresses of frontends that source ranges restrict in the maps.
func (r *rig) boundAddr() map[netip.Addr]bool {
	bound := map[netip.Addr]bool{}
	for k, v := range r.dump().Frontends {
		if v.Flags&maps.SourceRanges != 0 {
			bound[k.AddrPort().Addr()] = true
		}
	}
	return bound
}

// TestBoundAddresses checks that OnSourceRanges names a load-balancer IP before source ranges
// restrict it in the maps, and until they no longer do, also when a write fails in between.
func TestBoundAddresses(t *testing.T) {
	f := &faults{lives: -1}
	r := newRig(t, &maps.Faulty{Tables: maps.NewFake(roomy), Fail: f.fail}, newTestClock())
	var heard []string
	follows := map[netip.Addr]bool{}
	r.loop.o.OnSourceRanges = func(bound []netip.Addr) {
		heard = append(heard, fmt.Sprint(bound))
		clear(follows)
		for _, a := range bound {
			follows[a] = true
		}
		for a := range r.boundAddr() {
			if !follows[a] {
				t.Errorf("%s is bound, and it was said of %v that they are", a, bound)
			}
		}
	}
	step := func(what string, fails bool, want ...string) {
		t.Helper()
		heard = []string{}
		if rep := r.step(); (rep.Err != nil) != fails {
			t.Errorf("%s: %v", what, rep.Err)
		}
		for a := range r.boundAddr() {
			if !follows[a] {
				t.Errorf("%s: %s is bound, and is not followed", what, a)
			}
		}
		if fmt.Sprint(heard) != fmt.Sprint(want) {
			t.Errorf("%s: heard %q, want %q", what, heard, want)
		}
	}
	step("nothing", false, "[]", "[]") // first reconcile: one call at its start, one after it
	r.store.SetService(service("open", "10.96.0.9", "http:80/TCP"))
	step("a service without ranges", false)
	r.store.SetService(rangedService("203.0.113.0/24"))
	step("ranges of IPv4", false, "[1.1.1.2 1.1.1.3]")
	r.store.SetService(rangedService("203.0.113.0/25", "2001:db8::/32"))
	step("of both families", false, "[1.1.1.2 1.1.1.3 2001:db8::2]")
	r.store.SetService(rangedService("203.0.113.0/26", "2001:db8::/33"))
	step("others", false)
	r.store.SetService(rangedService("2001:db8::/33").with(func(s *Service) { s.LoadBalancerIPs = addrs("1.1.1.4", "2001:db8::3") }))
	step("other addresses", false, "[1.1.1.2 1.1.1.3 2001:db8::2 2001:db8::3]", "[2001:db8::3]")
	r.store.SetService(rangedService())
	f.lives = 1
	step("none, and a write fails", true)
	f.lives = -1
	r.clock.advance(grace)
	step("none", false, "[]")
	r.store.SetService(rangedService("203.0.113.0/24"))
	step("again", false, "[1.1.1.2 1.1.1.3]")
	r.store.DeleteService(svcName("web"))
	step("the service goes", false, "[]")
}
