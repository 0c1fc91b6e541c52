// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	stdmaps "maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"shunt/maps"
)

// TestRenamedPort checks that a port with a new name keeps its id and its backends, also if the
// name changes while no daemon runs. A port of another number is another port.
func TestRenamedPort(t *testing.T) {
	r := newGuardedRig(t)
	type known struct {
		service, backend uint32
		name             string
	}
	find := func() (k known) {
		t.Helper()
		d := r.dump()
		for id, be := range d.Backends {
			if be.Protocol == 17 {
				k = known{be.ServiceId, id, d.Names[be.ServiceId].String()}
			}
		}
		if k.backend == 0 {
			t.Fatal("no endpoint of UDP has a record")
		}
		return k
	}
	set := func(port, other string) {
		r.clock.advance(grace)
		r.store.SetService(service("a", "10.96.0.1", port+":53/UDP", other+":80/TCP"))
		r.store.SetSlice(slice("a", "a", port+":5353/UDP "+other+":8080/TCP", "10.0.0.1"))
	}
	set("dns", "web")
	r.mustStep()
	before := find()
	r.heard.stale = nil
	set("dns-udp", "web")
	r.mustStep()
	if got := find(); got.service != before.service || got.backend != before.backend || got.name != "default/a:dns-udp/UDP" {
		t.Errorf("after the name has changed: %+v, before it was %+v", got, before)
	}
	set("x", "y") // both at once, while no daemon runs
	r.start()
	r.mustStep()
	if got := find(); got.service != before.service || got.backend != before.backend || got.name != "default/a:x/UDP" {
		t.Errorf("after both names have changed: %+v, before it was %+v", got, before)
	}
	if len(r.heard.stale) > 0 {
		t.Errorf("sockets are said to be left behind: %+v", r.heard.stale)
	}
	r.sameAs(r.fresh(), "after all")
	r.clock.advance(grace)
	r.store.SetService(service("a", "10.96.0.1", "z:54/UDP"))
	r.mustStep()
	if _, there := r.dump().Frontends[maps.NewFrontendKey(netip.MustParseAddr("10.96.0.1"), 53, 17)]; there {
		t.Error("the old port is still there")
	}
	for id, n := range r.dump().Names {
		if n.Port == "z" && id == before.service {
			t.Error("a port of another number has the old one's id")
		}
	}
}

// records returns, for each UDP port of 10.96.0.1, the service id of its frontend and the backends
// of that id.
func (r *rig) records(ports ...uint16) map[uint16]string {
	r.t.Helper()
	d := r.dump()
	all := map[uint16]string{}
	for _, port := range ports {
		v, has := d.Frontends[maps.NewFrontendKey(netip.MustParseAddr("10.96.0.1"), port, 17)]
		if !has {
			all[port] = "no frontend"
			continue
		}
		all[port] = fmt.Sprintf("%d:", v.Id)
		for _, id := range slices.Sorted(stdmaps.Keys(d.Backends)) {
			if be := d.Backends[id]; be.ServiceId == v.Id {
				all[port] += fmt.Sprintf(" %d=%s", id, be.AddrPort())
				if be.Flags&maps.Renamed != 0 {
					all[port] += "(renamed)"
				}
			}
		}
	}
	return all
}

// setTwo sets the names of ports 53 and 54 of a service, in the Service and in its slice; "": no
// change.
func (r *rig) setTwo(inService, inSlice string) {
	r.clock.advance(grace)
	if names := strings.Fields(inService); len(names) > 0 {
		r.store.SetService(service("a", "10.96.0.1", names[0]+":53/UDP", names[1]+":54/UDP"))
	}
	if names := strings.Fields(inSlice); len(names) > 0 {
		r.store.SetSlice(slice("a", "a", names[0]+":5353/UDP "+names[1]+":5454/UDP", "10.0.0.1"))
	}
	r.mustStep()
}

// TestNamesOfPortsChange checks that ports keep their ids and backends when names change or are
// swapped, whether the Service and its slices change at once or one after the other.
func TestNamesOfPortsChange(t *testing.T) {
	for _, test := range []struct {
		name  string
		steps [][2]string // names in the Service, in the slice; "": no change
		apart bool        // between the steps the names refer to other endpoints
	}{
		{"at once", [][2]string{{"x y", "x y"}}, false},
		{"the Service first", [][2]string{{"x y", ""}, {"", "x y"}}, false},
		{"the slice first", [][2]string{{"", "x y"}, {"x y", ""}}, false},
		{"one name, the Service first", [][2]string{{"dns y", ""}, {"", "dns y"}}, false},
		{"swapped at once", [][2]string{{"alt dns", "alt dns"}}, false},
		{"swapped, the Service first", [][2]string{{"alt dns", ""}, {"", "alt dns"}}, true},
		{"swapped, the slice first", [][2]string{{"", "alt dns"}, {"alt dns", ""}}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newGuardedRig(t)
			r.setTwo("dns alt", "dns alt")
			before := r.records(53, 54)
			r.heard.stale = nil
			for _, s := range test.steps {
				r.setTwo(s[0], s[1])
			}
			after := r.records(53, 54)
			for port, want := range before {
				if got := after[port]; got != want && (!test.apart || !strings.HasPrefix(got, want)) {
					t.Errorf("port %d has %q, before it was %q", port, got, want)
				}
			}
			if len(r.heard.stale) > 0 {
				t.Errorf("sockets are said to be left behind: %+v", r.heard.stale)
			}
			r.sameAs(r.fresh(), "after all")
			r.start()
			r.clock.advance(listedPause)
			r.mustStep()
			r.clock.advance(listedPause)
			r.mustStep()
			if got := r.records(53, 54); !stdmaps.Equal(got, before) {
				t.Errorf("a new daemon has %v, want %v", got, before)
			}
			r.sameAs(r.fresh(), "with a new daemon")
		})
	}
}

// TestNamesOfPortsStayApart checks that, while names differ, no new flow goes to an endpoint that
// the port does not have by name, and that after listedPause nothing of that endpoint remains.
func TestNamesOfPortsStayApart(t *testing.T) {
	r := newGuardedRig(t)
	r.setTwo("dns alt", "dns alt")
	before := r.records(53)
	r.heard.stale = nil
	r.setTwo("x alt", "")
	if got, want := r.records(53)[53], before[53]+"(renamed)"; got != want {
		t.Errorf("with another name port 53 has %q, want %q", got, want)
	}
	if v := r.dump().Frontends[maps.NewFrontendKey(netip.MustParseAddr("10.96.0.1"), 53, 17)]; v.Inside.Count != 0 {
		t.Errorf("new flows are sent to %+v", v.Inside)
	}
	if due, any := r.loop.next(); !any || due.After(r.clock.now().Add(listedPause)) {
		t.Errorf("it is looked at again at %v (%t), now it is %v", due, any, r.clock.now())
	}
	r.clock.advance(listedPause - time.Millisecond)
	r.mustStep()
	if len(r.heard.stale) > 0 {
		t.Error("it ends too early")
	}
	r.clock.advance(time.Millisecond)
	r.mustStep()
	if len(r.heard.stale) != 1 || !r.heard.stale[0].UDPFlows {
		t.Errorf("after that sockets are said to be left behind: %+v, want flows of UDP", r.heard.stale)
	}
	if _, any := r.loop.next(); any {
		t.Error("something is left to do")
	}
	if got, want := r.dump().Text(), r.fresh().dump().Text(); got != want {
		t.Errorf("the maps hold\n%s\nwant\n%s", got, want)
	}
}

// TestGoneIsNotRenamed checks that an endpoint is removed at once if the slices no longer list it,
// or the Service no longer has a port for it.
func TestGoneIsNotRenamed(t *testing.T) {
	for name, change := range map[string]func(r *rig){
		"the endpoint goes": func(r *rig) {
			r.store.SetService(service("a", "10.96.0.1", "x:53/UDP", "alt:54/UDP"))
			r.store.SetSlice(slice("a", "a", "dns:5353/UDP alt:5454/UDP", "10.0.0.2"))
		},
		"the endpoint serves no longer": func(r *rig) {
			r.store.SetService(service("a", "10.96.0.1", "x:53/UDP", "alt:54/UDP"))
			r.store.SetSlice(slice("a", "a", "dns:5353/UDP alt:5454/UDP", "10.0.0.1 -", "10.0.0.2"))
		},
		"the port goes":    func(r *rig) { r.store.SetService(service("a", "10.96.0.1", "alt:54/UDP")) },
		"the Service goes": func(r *rig) { r.store.DeleteService(svcName("a")) },
		"the slice goes": func(r *rig) {
			r.store.SetService(service("a", "10.96.0.1", "x:53/UDP", "alt:54/UDP"))
			r.store.DeleteSlice(SliceName{"default", "a"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newGuardedRig(t)
			r.setTwo("dns alt", "dns alt")
			r.heard.stale = nil
			r.clock.advance(grace)
			change(r)
			r.mustStep()
			if got, want := r.dump().Text(), r.fresh().dump().Text(); got != want {
				t.Errorf("the maps hold\n%s\nwant\n%s", got, want)
			}
			if len(r.heard.stale) == 0 {
				t.Error("no sockets are said to be left behind")
			}
		})
	}
}

// TestNodePortStays checks that a node port keeps its service id and its backends, whatever else of
// its Service changes.
func TestNodePortStays(t *testing.T) {
	at := maps.NewFrontendKey(netip.IPv4Unspecified(), 30053, 17)
	for name, change := range map[string]func(r *rig){
		"another number": func(r *rig) {
			r.store.SetService(service("a", "10.96.0.1 fd96::1", "dns:5300/UDP:30053"))
		},
		"another number and name": func(r *rig) {
			r.store.SetService(service("a", "10.96.0.1 fd96::1", "x:5300/UDP:30053"))
			r.store.SetSlice(slice("a", "a", "x:5353/UDP", "10.0.0.1"))
		},
		"another port has its number": func(r *rig) {
			r.store.SetService(service("a", "10.96.0.1 fd96::1", "x:53/UDP", "dns:5300/UDP:30053"))
		},
		"the families in another order": func(r *rig) {
			r.store.SetService(service("a", "fd96::1 10.96.0.1", "dns:53/UDP:30053"))
		},
		"a port of another protocol beside it": func(r *rig) {
			r.store.SetService(service("a", "10.96.0.1 fd96::1", "t:53/TCP:30053", "dns:53/UDP:30053"))
		},
		"deleted and made again": func(r *rig) {
			r.store.DeleteService(svcName("a"))
			r.store.DeleteSlice(SliceName{"default", "a"})
			r.store.SetService(service("a", "10.96.0.1 fd96::1", "dns:53/UDP:30053"))
			r.store.SetSlice(slice("new", "a", "dns:5353/UDP", "10.0.0.1"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newGuardedRig(t)
			r.store.SetService(service("a", "10.96.0.1 fd96::1", "dns:53/UDP:30053"))
			r.store.SetSlice(slice("a", "a", "dns:5353/UDP", "10.0.0.1"))
			r.mustStep()
			// leads returns the node port's service id, and the ids of its backends.
			leads := func() (uint32, []uint32) {
				t.Helper()
				d := r.dump()
				v := d.Frontends[at]
				ids, err := d.Range(v.Inside)
				if err != nil || len(ids) != 1 || d.Backends[ids[0]].AddrPort() != netip.MustParseAddrPort("10.0.0.1:5353") {
					t.Fatalf("the node port leads to %v (%v)", ids, err)
				}
				return v.Id, slices.Clone(ids)
			}
			id, records := leads()
			r.clock.advance(grace)
			change(r)
			r.mustStep()
			if newID, newRecords := leads(); newID != id || !slices.Equal(newRecords, records) {
				t.Errorf("service id %d, records %v, before they were %d and %v", newID, newRecords, id, records)
			}
		})
	}
}

// TestKilledWhileNamesChange kills the daemon after each write of a change of the names of three
// ports. The next daemon finds a name twice in the maps, and has to continue all ports: their flows
// refer to their ids and backends.
func TestKilledWhileNamesChange(t *testing.T) {
	set := func(r *rig, names string) {
		n := strings.Fields(names)
		r.store.SetService(service("a", "10.96.0.1", n[0]+":53/UDP", n[1]+":54/UDP", n[2]+":55/UDP"))
		r.store.SetSlice(slice("a", "a", n[0]+":5353/UDP "+n[1]+":5454/UDP "+n[2]+":5555/UDP", "10.0.0.1"))
	}
	for _, change := range []struct{ to, next string }{
		{"y x z", "y x z"}, // swapped
		{"y z x", "y z x"}, // rotated
		{"y x z", "x y z"}, // swapped, and swapped back while no daemon runs
		{"y z x", "new x y"},
	} {
		for lives := range 6 {
			for range 8 { // the order of the names in the maps is random
				f := &faults{lives: -1}
				clock := newTestClock()
				r := newRig(t, &maps.Faulty{Tables: newGuard(t, maps.NewFake(roomy), clock), Fail: f.fail}, clock)
				set(r, "x y z")
				r.mustStep()
				before := r.records(53, 54, 55)
				r.clock.advance(grace)
				set(r, change.to)
				f.lives = lives
				r.step()
				f.lives = -1
				set(r, change.next)
				r.start()
				r.clock.advance(grace)
				r.settle()
				if got := r.records(53, 54, 55); !stdmaps.Equal(got, before) {
					t.Fatalf("to %q, killed after %d writes, then %q: %v, before %v", change.to, lives, change.next, got, before)
				}
				if len(r.heard.stale) > 0 {
					t.Fatalf("to %q, killed after %d writes: sockets are said to be left behind: %+v", change.to, lives, r.heard.stale)
				}
				r.sameAs(r.fresh(), "after the change to "+change.to)
			}
		}
	}
}
