// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"shunt/maps"
)

// refused reports whether programs refuse an address as one that no service has.
func (r *rig) refused(addr string) bool {
	r.t.Helper()
	d, a := r.dump(), netip.MustParseAddr(addr)
	for k := range d.Frontends {
		if k.AddrPort().Addr() == a {
			return false
		}
	}
	inRange := slices.ContainsFunc(d.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
	return inRange && !slices.Contains(d.Allocated, a)
}

// TestNotServed checks that the cluster IPs of services that another proxy serves are not refused,
// from the moment when that begins until shunt serves them or they are deleted, also over a
// restart.
func TestNotServed(t *testing.T) {
	r := newGuardedRig(t)
	other := func(name string, ips ...string) *Service {
		return &Service{Name: svcName(name), ClusterIPs: addrs(ips...), NotServed: true}
	}
	check := func(what, left, refused string) {
		t.Helper()
		r.mustStep()
		for _, a := range strings.Fields(left) {
			if r.refused(a) {
				t.Errorf("%s: %s is refused", what, a)
			}
		}
		for _, a := range strings.Fields(refused) {
			if !r.refused(a) {
				t.Errorf("%s: %s is not refused", what, a)
			}
		}
		r.sameAs(r.fresh(), what)
	}
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/16", "fd96::/112"))
	r.store.SetService(other("a", "10.96.0.1", "fd96::1"))
	r.store.SetService(service("b", "10.96.0.2", "p:80/TCP"))
	check("one is another proxy's", "10.96.0.1 fd96::1 10.96.0.2", "10.96.0.3 fd96::2")
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP"))
	check("it becomes ours, of one family", "10.96.0.1", "fd96::1")
	r.store.SetService(other("a", "10.96.0.1"))
	r.store.SetService(other("b", "10.96.0.2"))
	check("both become another's", "10.96.0.1 10.96.0.2", "fd96::1")
	r.clock.advance(grace)
	r.start()
	check("a new daemon", "10.96.0.1 10.96.0.2", "10.96.0.3")
	r.store.SetService(other("c", "10.96.0.1"))
	r.store.DeleteService(svcName("a"))
	check("its address goes to another one", "10.96.0.1 10.96.0.2", "10.96.0.3")
	r.store.DeleteService(svcName("c"))
	check("gone", "10.96.0.2", "10.96.0.1")
	r.store.DeleteService(svcName("b"))
	r.start()
	check("gone while the daemon was away", "", "10.96.0.1 10.96.0.2")
	r.store.SetServiceCIDRs(prefixes("10.96.0.9/32"))
	r.store.SetService(other("d", "10.96.0.9"))
	check("a range of one address, which is excepted", "10.96.0.9", "")
	r.store.DeleteService(svcName("d"))
	check("and is not any more", "", "10.96.0.9")
}

// TestNotServedHasItsAddress checks that an address of a service that another proxy serves is no
// other service's external address, also where no service CIDR is known.
func TestNotServedHasItsAddress(t *testing.T) {
	r := newGuardedRig(t)
	r.store.SetService(service("tenant", "10.96.0.7", "p:80/TCP").with(func(s *Service) { s.ExternalIPs = addrs("10.96.0.1") }))
	r.mustStep()
	if got := r.owner("10.96.0.1:80"); got != "tenant ExternalIP" {
		t.Errorf("before it is allocated: %s", got)
	}
	r.store.SetService(&Service{Name: svcName("other"), Created: time.Now(), ClusterIPs: addrs("10.96.0.1"), NotServed: true})
	r.mustStep()
	if got := r.owner("10.96.0.1:80"); got != "none" {
		t.Errorf("another proxy's address is %s", got)
	}
	r.store.DeleteService(svcName("other"))
	r.mustStep()
	if got := r.owner("10.96.0.1:80"); got != "tenant ExternalIP" {
		t.Errorf("when it is free again: %s", got)
	}
}

// TestNotProgrammed checks that the address of a service that could not be programmed is not
// refused as unallocated.
func TestNotProgrammed(t *testing.T) {
	clock := newTestClock()
	fails := true
	tables := &maps.Faulty{Tables: maps.NewFake(roomy), Fail: func(call string) error {
		if fails && call == "SetFrontend" {
			return errFault
		}
		return nil
	}}
	r := newRig(t, tables, clock)
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/16"))
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP"))
	if rep := r.step(); !errors.Is(rep.Err, errFault) {
		t.Fatalf("%+v", rep)
	}
	if r.refused("10.96.0.1") || !r.refused("10.96.0.2") {
		t.Errorf("refused: %s", r.dump().Text())
	}
	fails = false
	r.settle()
	if d := r.dump(); len(d.Allocated) != 0 || r.refused("10.96.0.1") || !r.refused("10.96.0.2") {
		t.Errorf("programmed: %s", d.Text())
	}
}

// TestNoRoomForExceptions checks that no address is refused while an allocated address cannot be
// excepted, and that refusal resumes afterwards.
func TestNoRoomForExceptions(t *testing.T) {
	clock := newTestClock()
	sizes := roomy
	sizes.Sources = 16 // room for four exceptions
	r := newRig(t, newGuard(t, maps.NewFake(sizes), clock), clock)
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/16"))
	r.mustStep()
	for i := range 5 {
		r.store.SetService(&Service{Name: svcName(fmt.Sprint("s", i)), ClusterIPs: addrs(fmt.Sprintf("10.96.1.%d", i)), NotServed: true})
	}
	r.mustStep()
	r.sameAs(r.fresh(), "without room")
	if st := r.loop.Status(); st.Exceptions != 5 || st.ExceptionRoom != 4 {
		t.Errorf("%d addresses to except are said, and room for %d", st.Exceptions, st.ExceptionRoom)
	}
	for _, a := range []string{"10.96.0.1", "10.96.1.1", "10.96.1.4"} {
		if r.refused(a) {
			t.Errorf("%s is refused", a)
		}
	}
	r.store.DeleteService(svcName("s0"))
	r.mustStep()
	if r.refused("10.96.1.4") || !r.refused("10.96.0.1") || !r.refused("10.96.1.0") {
		t.Errorf("with room again: %s", r.dump().Text())
	}
	r.sameAs(r.fresh(), "with room again")
}

// TestManyServicesOfAnotherProxy checks that, with the default sizes, another proxy may serve up to
// 16,384 addresses without an effect on the refusal of others.
func TestManyServicesOfAnotherProxy(t *testing.T) {
	r := newRig(t, maps.NewFake(maps.DefaultSizes()), newTestClock())
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/12"))
	const many = 16384
	for i := range many {
		a := netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})
		r.store.SetService(&Service{Name: svcName(fmt.Sprint("s", i)), ClusterIPs: []netip.Addr{a}, NotServed: true})
	}
	r.mustStep()
	if !r.refused("10.96.0.1") || r.refused("10.97.0.0") || r.refused("10.97.63.255") {
		t.Error("an address that no service has is not refused, or one that a service has is")
	}
	r.store.SetService(&Service{Name: svcName("more"), ClusterIPs: addrs("10.98.0.0"), NotServed: true})
	r.mustStep()
	if r.refused("10.96.0.1") || r.refused("10.98.0.0") {
		t.Error("with one more something is refused")
	}
}

// TestNoRoomForExceptionsIsSaidOnce checks that one line is logged when the state begins, however
// many services are added and deleted meanwhile.
func TestNoRoomForExceptionsIsSaidOnce(t *testing.T) {
	sizes := roomy
	sizes.Sources = 16 // room for four exceptions
	r := newRig(t, maps.NewFake(sizes), newTestClock())
	core, logs := observer.New(zapcore.WarnLevel)
	r.loop.r.log = zap.New(core)
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/16"))
	other := func(i int) *Service {
		return &Service{Name: svcName(fmt.Sprint("s", i)), ClusterIPs: addrs(fmt.Sprintf("10.96.1.%d", i)), NotServed: true}
	}
	for i := range 40 {
		r.store.SetService(other(i))
		r.mustStep()
	}
	if n := logs.Len(); n != 1 {
		t.Errorf("%d lines of the log, want 1: %v", n, logs.All())
	}
	for i := range 38 { // the state ends, and begins again
		r.store.DeleteService(svcName(fmt.Sprint("s", i)))
		r.mustStep()
	}
	for i := range 3 {
		r.store.SetService(other(i))
		r.mustStep()
	}
	if n := logs.Len(); n != 2 {
		t.Errorf("%d lines of the log after it began again, want 2", n)
	}
}

// fullSources is Tables without room for source ranges while map sources has an exception.
type fullSources struct {
	maps.Tables
	exceptions int
}

func (f *fullSources) SetAllocated(a netip.Addr) error {
	f.exceptions++
	return f.Tables.SetAllocated(a)
}

func (f *fullSources) DeleteAllocated(a netip.Addr) error {
	f.exceptions--
	return f.Tables.DeleteAllocated(a)
}

func (f *fullSources) SetSourceRange(k maps.SourceRangeKey) error {
	if f.exceptions > 0 {
		return roomy.NewFullError(maps.NameSources)
	}
	return f.Tables.SetSourceRange(k)
}

// TestExceptionsMakeRoom checks that a service that failed for want of room in map sources is tried
// again soon after an exception has been removed from that map.
func TestExceptionsMakeRoom(t *testing.T) {
	r := newRig(t, &fullSources{Tables: maps.NewFake(roomy)}, newTestClock())
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/16"))
	r.store.SetService(&Service{Name: svcName("other"), ClusterIPs: addrs("10.96.0.9"), NotServed: true})
	r.mustStep()
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP").with(func(s *Service) {
		s.LoadBalancerIPs, s.SourceRanges = addrs("1.1.1.2"), prefixes("203.0.113.0/24")
	}))
	for range 12 { // until the wait is the longest
		if r.step().Err == nil {
			t.Fatal("the service has room: the test proves nothing")
		}
	}
	if due, _ := r.loop.next(); due.Sub(r.clock.now()) <= grace {
		t.Fatalf("it is tried again in %v: the test proves nothing", due.Sub(r.clock.now()))
	}
	r.store.DeleteService(svcName("other"))
	r.loop.step(r.clock.now(), 0)
	if due, any := r.loop.next(); !any || due.Sub(r.clock.now()) > grace {
		t.Errorf("it is tried again in %v, want at most %v", due.Sub(r.clock.now()), grace)
	}
	r.settle()
	r.sameAs(r.fresh(), "with room again")
}
