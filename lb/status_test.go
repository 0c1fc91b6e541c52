// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"shunt/maps"
)

// TestStatus checks Status from the first change to the last, with failures in between.
func TestStatus(t *testing.T) {
	clock := newTestClock()
	fail := false
	r := &rig{t: t, clock: clock, store: NewStore(clock.now), tables: &maps.Faulty{Tables: maps.NewFake(roomy),
		Fail: func(string) error {
			if fail {
				return errFault
			}
			return nil
		}}}
	r.start()
	start := clock.t
	check := func(what string, want Status) {
		t.Helper()
		got := r.loop.Status()
		if got.Err != nil {
			t.Errorf("%s: error %v of what is no Service's", what, got.Err)
		}
		if got.Failing != want.Failing || got.Problems.Total != want.Failing {
			t.Errorf("%s: %d services fail with %d problems, want %d", what, got.Failing, got.Problems.Total, want.Failing)
		}
		got.Fill, got.NoLocalEndpoints, got.Problems, want.Problems = nil, nil, Problems{}, Problems{}
		if got.Synced != want.Synced || !got.LastSync.Equal(want.LastSync) || !got.QueuedSince.Equal(want.QueuedSince) ||
			!got.LastQueued.Equal(want.LastQueued) || got.ServiceChanges != want.ServiceChanges || got.EndpointChanges != want.EndpointChanges ||
			got.ServiceChangesPending != want.ServiceChangesPending || got.EndpointChangesPending != want.EndpointChangesPending ||
			got.Node != want.Node {
			t.Errorf("%s:\n     %+v\nwant %+v", what, got, want)
		}
		clock.advance(time.Second)
	}
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }

	check("at first", Status{})
	r.store.SetService(numberedService(1))
	check("a service before the sync, which no reconcile is late for", Status{LastQueued: at(1), ServiceChanges: 1, ServiceChangesPending: 1})
	r.store.SetSynced()
	check("synced, with all to do", Status{LastQueued: at(2), QueuedSince: at(1), ServiceChanges: 1, ServiceChangesPending: 1})
	r.step()
	check("the first reconcile", Status{Synced: true, LastSync: at(3), LastQueued: at(2), ServiceChanges: 1})

	node := &Node{Name: "me"}
	r.store.SetNode(node)
	check("the node", Status{Synced: true, LastSync: at(3), LastQueued: at(4), QueuedSince: at(4), ServiceChanges: 1, Node: node})
	fail = true
	r.step()
	check("which concerns no map", Status{Synced: true, LastSync: at(5), LastQueued: at(4), ServiceChanges: 1, Node: node})
	r.store.SetSlice(numberedSlice(1, 0, 2))
	r.step()
	check("a failure", Status{Synced: true, LastSync: at(5), LastQueued: at(6), Failing: 1,
		ServiceChanges: 1, EndpointChanges: 1, EndpointChangesPending: 1, Node: node})
	r.store.SetSlice(numberedSlice(1, 1, 2))
	check("a change while it fails", Status{Synced: true, LastSync: at(5), LastQueued: at(7), QueuedSince: at(7), Failing: 1,
		ServiceChanges: 1, EndpointChanges: 2, EndpointChangesPending: 2, Node: node})
	r.step()
	check("it fails again", Status{Synced: true, LastSync: at(5), LastQueued: at(7), Failing: 1,
		ServiceChanges: 1, EndpointChanges: 2, EndpointChangesPending: 2, Node: node})
	fail = false
	r.step()
	check("it works", Status{Synced: true, LastSync: at(9), LastQueued: at(7),
		ServiceChanges: 1, EndpointChanges: 2, Node: node})
	r.store.SetNode(nil)
	r.step()
	check("the node is gone", Status{Synced: true, LastSync: at(10), LastQueued: at(10), ServiceChanges: 1, EndpointChanges: 2})
}

// TestStatusCounts checks Fill, and the counts of service ports without local endpoints by family
// and policy.
func TestStatusCounts(t *testing.T) {
	r := newGuardedRig(t)
	town(r.store)
	r.mustStep()
	s := r.loop.Status()
	d := r.dump()
	entries := 0
	for k := range d.Frontends {
		if k.Port != 0 {
			entries++
		}
	}
	if len(d.Sources) == 0 || len(d.ServiceCIDRs) == 0 {
		t.Error("no sources to count")
	}
	want := []maps.Fill{
		{Map: "services", Flag: maps.FlagServices, Used: uint32(entries), Size: roomy.Services},
		{Map: "slots", Flag: maps.FlagSlots, Used: r.loop.r.slots.used, Size: roomy.Slots},
		{Map: "backends", Flag: maps.FlagBackends, Used: uint32(len(d.Backends)), Size: roomy.Backends},
		{Map: "sources", Flag: maps.FlagSources, Used: uint32(len(d.Sources) + len(d.ServiceCIDRs)), Size: roomy.Sources},
	}
	if !slices.Equal(s.Fill, want) {
		t.Errorf("fill %+v, want %+v", s.Fill, want)
	}
	noLocal := func(what string, internal4, external4, internal6, external6 int) {
		t.Helper()
		got := r.loop.Status().NoLocalEndpoints
		for k, want := range map[NoLocalKey]int{{IPv4, false}: internal4, {IPv4, true}: external4, {IPv6, false}: internal6, {IPv6, true}: external6} {
			if got[k] != want {
				t.Errorf("%s: %+v: %d, want %d", what, k, got[k], want)
			}
		}
	}
	noLocal("far is local only, and far", 1, 0, 0, 0)
	r.store.SetSlice(slice("web-6", "web", "http:8080/TCP dns:53/UDP", "fd00::2"))
	r.mustStep()
	noLocal("both of web's ports have nobody here over IPv6", 1, 0, 0, 2)
	r.store.DeleteSlice(SliceName{"default", "far-4"})
	r.mustStep()
	noLocal("far has no endpoint at all, which is another matter", 0, 0, 0, 2)
	r.store.DeleteService(svcName("web"))
	r.mustStep()
	noLocal("web is deleted", 0, 0, 0, 0)
}

// TestReport checks what a Report says: the services looked at, those that failed, and the time of
// each change that is now in the maps, once.
func TestReport(t *testing.T) {
	clock := newTestClock()
	f := &faults{lives: 0}
	r := newRig(t, &maps.Faulty{Tables: maps.NewFake(roomy), Fail: f.fail}, clock)
	old := numberedSlice(1, 0, 1)
	old.LastChange = clock.t.Add(-time.Hour)
	r.store.SetService(numberedService(1))
	r.store.SetSlice(old)
	if rep := r.step(); !rep.Full || rep.Services != 1 || rep.Failed != 1 || !errors.Is(rep.Err, errFault) || len(rep.Programmed) != 0 {
		t.Errorf("the first, which fails: %+v", rep)
	}
	f.lives = -1
	if rep := r.step(); rep.Full || rep.Services != 1 || rep.Failed != 0 || rep.Err != nil || len(rep.Programmed) != 0 {
		t.Errorf("its retry, of changes from before our time: %+v", rep)
	}
	if rep := r.step(); rep.Services != 0 || rep.Writes.Total() != 0 {
		t.Errorf("of nothing: %+v", rep)
	}
	var changed []time.Time
	for i := range 3 {
		n := numberedSlice(1, i+1, 1)
		n.LastChange = clock.t.Add(time.Duration(i) * time.Millisecond)
		changed = append(changed, n.LastChange)
		r.store.SetSlice(n)
		if i == 1 { // a change of a failed attempt is not lost
			f.lives = 0
			if rep := r.step(); len(rep.Programmed) != 0 || rep.Failed != 1 {
				t.Errorf("failed: %+v", rep)
			}
			f.lives = -1
		}
	}
	clock.advance(grace)
	if rep := r.mustStep(); !slices.Equal(rep.Programmed, changed) {
		t.Errorf("programmed are changes of %v, want %v", rep.Programmed, changed)
	}
	// Looked at twice in one reconcile, since it also wins an address.
	claim := func(s *Service) { s.ExternalIPs = addrs("1.1.1.1") }
	r.store.SetService(numberedService(0).with(claim))
	r.store.SetService(numberedService(1).with(claim))
	r.mustStep()
	r.store.DeleteService(svcName("svc-0"))
	n := numberedSlice(1, 5, 1)
	n.LastChange = clock.t
	r.store.SetSlice(n)
	clock.advance(grace)
	if rep := r.mustStep(); len(rep.Programmed) != 1 || r.leads("1.1.1.1:80") != "10.5.0.1:8080" {
		t.Errorf("an heir that changed: programmed are %v, the address leads to %s", rep.Programmed, r.leads("1.1.1.1:80"))
	}
	r.store.SetNode(&Node{Name: "me", Zone: "z"})
	if rep := r.mustStep(); !rep.Full || len(rep.Programmed) != 0 {
		t.Errorf("another zone: %+v", rep)
	}
}

// TestFullMapHurtsOneService checks that a problem names what has no room, with its map and the
// flag. Other services are programmed, and nothing fails.
func TestFullMapHurtsOneService(t *testing.T) {
	for full, sizes := range map[string]maps.Sizes{
		"services": {Services: 4, Slots: 64, Backends: 32, Affinity: 16, Sources: 16, Flows: 16},
		"slots":    {Services: 16, Slots: 4, Backends: 32, Affinity: 16, Sources: 16, Flows: 16},
		"backends": {Services: 16, Slots: 64, Backends: 5, Affinity: 16, Sources: 16, Flows: 16},
	} {
		t.Run(full, func(t *testing.T) {
			clock := newTestClock()
			r := newRig(t, newGuard(t, maps.NewFake(sizes), clock), clock)
			r.store.SetService(service("a", "10.96.0.1", "p:80/TCP", "q:81/TCP"))
			r.store.SetSlice(slice("a", "a", "p:80/TCP", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
			r.mustStep()
			held := r.dump().Text()
			r.store.SetService(service("b", "10.96.0.2", "p:80/TCP:30080", "q:81/TCP"))
			r.store.SetSlice(slice("b", "b", "p:80/TCP q:81/TCP", "10.0.0.1", "10.0.0.2"))
			r.mustStep()
			troubles := r.claimProblems("b")
			if all := r.loop.Status().Problems; len(troubles) == 0 || all.Services[maps.NoRoom] != 1 || !r.loop.failed.empty() {
				t.Fatalf("problems are %+v, failed %+v", all, r.loop.failed.all)
			}
			for _, w := range []string{"map " + full + " is full", "--" + full + "-map-size"} {
				if !strings.Contains(troubles[0].Error, w) {
					t.Errorf("%q does not say %q", troubles[0].Error, w)
				}
			}
			for line := range strings.Lines(held) {
				if !strings.Contains(r.dump().Text(), line) {
					t.Errorf("gone: %s", line)
				}
			}
			r.store.DeleteService(svcName("a"))
			clock.advance(grace)
			r.settle()
			r.sameAs(r.fresh(), "with room again")
		})
	}
}

// TestFullMapSwap checks that a service port can be renamed when map backends has no room for
// the old and the new port's backends together.
func TestFullMapSwap(t *testing.T) {
	clock := newTestClock()
	r := newRig(t, newGuard(t, maps.NewFake(maps.Sizes{Services: 16, Slots: 64, Backends: 4, Affinity: 16, Sources: 16, Flows: 16}), clock), clock)
	for _, name := range []string{"p", "q"} { // the same port under another name
		r.store.SetService(service("a", "10.96.0.1", name+":80/TCP"))
		r.store.SetSlice(slice("a", "a", name+":80/TCP", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
		clock.advance(grace)
		r.settle()
		r.sameAs(r.fresh(), "with port "+name)
	}
}

// TestHealthChecks checks that all health checks are reported, sorted, when one of them changed.
func TestHealthChecks(t *testing.T) {
	r := newGuardedRig(t)
	check := func(what string, want ...HealthCheck) {
		t.Helper()
		before := len(r.heard.checks)
		r.clock.advance(grace)
		r.mustStep()
		got := r.heard.checks[before:]
		switch {
		case want == nil && len(got) == 0:
		case want == nil || len(got) != 1 || !slices.Equal(got[0], want):
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	lb := func(name, ip string, port uint16) *Service {
		return service(name, ip, "p:80/TCP").with(func(s *Service) { s.HealthCheckNodePort, s.ExternalLocal = port, true })
	}
	a, b := svcName("a"), svcName("z/b")
	check("nothing")
	r.store.SetService(lb("z/b", "10.96.0.2", 32001))
	r.store.SetService(lb("a", "10.96.0.1", 32000))
	r.store.SetService(service("c", "10.96.0.3", "p:80/TCP"))
	on := func(name ServiceName, family Family, port uint16, n int) HealthCheck {
		return HealthCheck{Service: name, Family: family, Port: port, LocalEndpoints: n}
	}
	b0 := on(b, IPv4, 32001, 0)
	check("two", on(a, IPv4, 32000, 0), b0)
	r.store.SetSlice(slice("a4", "a", "p:80/TCP", "10.0.0.1@me", "10.0.0.2@you", "10.0.0.3@me serving terminating"))
	check("one endpoint of a is ready here", on(a, IPv4, 32000, 1), b0)
	r.store.SetSlice(slice("a6", "a", "p:80/TCP q:81/TCP", "fd00::1@me"))
	check("one of a family that a does not have")
	dual := lb("a", "10.96.0.1", 32000).with(func(s *Service) { s.ClusterIPs = addrs("10.96.0.1", "fd00:96::1") })
	r.store.SetService(dual)
	check("a has both families", on(a, IPv4, 32000, 1), on(a, IPv6, 32000, 1), b0)
	r.store.SetSlice(slice("a6", "a", "q:81/TCP", "fd00::1@me"))
	check("the IPv6 endpoint has no port of a's", on(a, IPv4, 32000, 1), on(a, IPv6, 32000, 0), b0)
	r.store.SetSlice(slice("a4", "a", "p:80/TCP", "10.0.0.1@me", "10.0.0.4@you"))
	check("another elsewhere")
	r.store.SetSlice(slice("c4", "c", "p:80/TCP", "10.0.0.1@me"))
	check("another service's")
	r.store.SetService(lb("a", "10.96.0.1", 32002))
	check("another port", on(a, IPv4, 32002, 1), b0)
	r.store.SetService(lb("a", "10.96.0.1", 0))
	check("none of a", b0)
	r.store.DeleteService(b)
	check("none", []HealthCheck{}...)
	if last := r.heard.checks[len(r.heard.checks)-1]; len(last) != 0 {
		t.Errorf("in the end %+v", last)
	}
}
