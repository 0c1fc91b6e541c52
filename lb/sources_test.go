// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"shunt/maps"
)

// rangedService returns a service with load-balancer IPs of both families.
func rangedService(ranges ...string) *Service {
	return service("web", "10.96.0.1 fd96::1", "http:80/TCP:30080", "dns:53/UDP").with(func(s *Service) {
		s.LoadBalancerIPs, s.ExternalIPs = addrs("1.1.1.2", "1.1.1.3", "2001:db8::2"), addrs("1.1.1.9")
		s.SourceRanges = prefixes(ranges...)
	})
}

// TestPlanSourceRanges checks that the ranges of each family restrict its load-balancer IPs and nothing
// else, that a family without ranges is open, and that a range that contains an address of the node
// also admits the load-balancer IPs.
func TestPlanSourceRanges(t *testing.T) {
	for _, c := range []struct {
		what   string
		ranges string
		nodes  string
		want4  string
		want6  string
	}{
		{"none", "", "192.168.0.1", "", ""},
		{"of both families", "2001:db8::/32 203.0.113.0/24 10.0.0.0/8", "192.168.0.1 fd00::1",
			"[10.0.0.0/8 203.0.113.0/24]", "[2001:db8::/32]"},
		{"of one family: the other is open", "203.0.113.0/24", "", "[203.0.113.0/24]", ""},
		{"that contain an address of the node", "192.168.0.0/24 2001:db8::/32", "fd00::1 192.168.0.1",
			"[1.1.1.2/32 1.1.1.3/32 192.168.0.0/24]", "[2001:db8::/32]"},
		{"that contain the node's loopback, which nobody else sees", "127.0.0.0/8", "127.0.0.1", "[127.0.0.0/8]", ""},
		{"that contain a load-balancer IP already", "0.0.0.0/1 192.0.0.0/8 1.1.1.2/32 ::/1 fd00::/8", "192.168.0.1 fd00::1",
			"[0.0.0.0/1 1.1.1.2/32 1.1.1.3/32 192.0.0.0/8]", "[::/1 2001:db8::2/128 fd00::/8]"},
		{"of all addresses: both families are open", "10.0.0.0/8 0.0.0.0/0 ::/0", "192.168.0.1 fd00::1", "", ""},
		{"of all addresses of one family", "0.0.0.0/0 2001:db8::/32", "", "", "[2001:db8::/32]"},
	} {
		svc := rangedService(strings.Fields(c.ranges)...)
		at := place{node: "me", addrs: outsideAddrs(addrs(strings.Fields(c.nodes)...))}
		for _, p := range planService(svc, nil, at) {
			want := map[Family]string{IPv4: c.want4, IPv6: c.want6}[p.key.family]
			if p.key.protocol == 0 {
				want = ""
			}
			if got := strings.TrimPrefix(fmt.Sprint(p.sources), "[]"); got != want {
				t.Errorf("%s: %s of %s has sources %s, want %s", c.what, p.key.port, p.key.family, got, want)
			}
			for _, f := range p.frontends {
				if ranged := f.kind == maps.LoadBalancerIP && want != ""; f.ranged != ranged {
					t.Errorf("%s: frontend %s is bound by ranges: %t", c.what, f.key, f.ranged)
				}
			}
		}
	}
	svc := rangedService("203.0.113.0/24").with(func(s *Service) { s.LoadBalancerIPs = nil })
	for _, p := range planService(svc, nil, place{}) {
		if len(p.sources) != 0 {
			t.Errorf("sources %s without a load-balancer IP", p.sources)
		}
	}
}

// TestSourcesFollowNodeAddresses checks that exactly the services with ranges are looked at again
// when the node's addresses other than loopback change, and that an address without an effect on
// them costs no write to map sources.
func TestSourcesFollowNodeAddresses(t *testing.T) {
	eachTables(t, roomy, func(t *testing.T, tables maps.Tables) {
		r := newRig(t, tables, newTestClock())
		r.store.SetNodeAddrs(addrs("127.0.0.1", "192.168.0.1"))
		r.store.SetService(rangedService("203.0.113.0/24", "192.168.1.0/24"))
		r.store.SetService(service("other", "10.96.0.2", "http:80/TCP"))
		r.mustStep()
		sources := func() string {
			d := r.dump()
			return fmt.Sprint(d.SourceRangesOf(d.Frontends[fe("1.1.1.2:80", TCP)].Id))
		}
		const without, with = "[192.168.1.0/24 203.0.113.0/24]", "[1.1.1.2/32 1.1.1.3/32 192.168.1.0/24 203.0.113.0/24]"
		for _, c := range []struct {
			addrs    string
			want     string
			writes   maps.Writes
			services int
		}{
			{"127.0.0.1 192.168.0.1 192.168.1.1", with, maps.Writes{Sources: 4, NodeAddrs: 1}, 1},
			{"127.0.0.1 192.168.0.1 192.168.1.2", with, maps.Writes{NodeAddrs: 2}, 1},
			{"192.168.0.1 192.168.1.2", with, maps.Writes{NodeAddrs: 2}, 0}, // loopback takes two entries
			{"192.168.0.1", without, maps.Writes{Sources: 4, NodeAddrs: 1}, 1},
		} {
			r.store.SetNodeAddrs(addrs(strings.Fields(c.addrs)...))
			rep := r.mustStep()
			if got := sources(); got != c.want || rep.Writes != c.writes || rep.Services != c.services {
				t.Errorf("%s: sources %s, want %s; %d services, writes %+v", c.addrs, got, c.want, rep.Services, rep.Writes)
			}
		}
		r.store.DeleteService(svcName("web"))
		r.mustStep()
		r.store.SetNodeAddrs(addrs("192.168.1.1"))
		if rep := r.mustStep(); rep.Services != 0 {
			t.Errorf("%d services are looked at, and none has ranges", rep.Services)
		}
		if d := r.dump(); len(d.Sources) != 0 {
			t.Errorf("left: %+v", d.Sources)
		}
	})
}

// TestSourcesAfterFailure checks that a reconcile for changed addresses of the node that fails
// half-way is repeated.
func TestSourcesAfterFailure(t *testing.T) {
	f := &faults{lives: -1}
	r := newRig(t, &maps.Faulty{Tables: maps.NewFake(roomy), Fail: f.fail}, newTestClock())
	r.store.SetNodeAddrs(addrs("192.168.0.1"))
	r.store.SetService(rangedService("192.168.1.0/24"))
	r.mustStep()
	r.store.SetNodeAddrs(addrs("192.168.0.1", "192.168.1.1"))
	f.lives = 1
	if rep := r.step(); !errors.Is(rep.Err, errFault) {
		t.Fatalf("%+v", rep)
	}
	f.lives = -1
	r.settle()
	r.sameAs(r.fresh(), "settled")
	if d := r.dump(); len(d.Sources) != 2*3 {
		t.Errorf("%d sources of two ports: %+v", len(d.Sources), d.Sources)
	}
}

// TestRangeIsPutBack checks that with map sources full, a range that was deleted to make room is
// restored if the new one cannot be written: otherwise the service would admit no client until it
// is tried again.
func TestRangeIsPutBack(t *testing.T) {
	sizes := roomy
	sizes.Sources = 1
	replacing := false
	r := newRig(t, &maps.Faulty{Tables: maps.NewFake(sizes), Fail: func(method string) error {
		fails := replacing && method == "SetSourceRange"
		replacing = method == "DeleteSourceRange"
		if fails {
			return errFault
		}
		return nil
	}}, newTestClock())
	svc := service("web", "10.96.0.1", "http:80/TCP").with(func(s *Service) {
		s.LoadBalancerIPs, s.SourceRanges = addrs("1.1.1.2"), prefixes("203.0.113.0/24")
	})
	r.store.SetService(svc)
	r.mustStep()
	r.store.SetService(svc.with(func(s *Service) { s.SourceRanges = prefixes("198.51.100.0/24") }))
	if rep := r.step(); !errors.Is(rep.Err, errFault) {
		t.Fatalf("%+v", rep)
	}
	v := r.dump().Frontends[fe("1.1.1.2:80", TCP)]
	if got := r.dump().SourceRangesOf(v.Id); !slices.Equal(got, prefixes("203.0.113.0/24")) {
		t.Errorf("after a failure the ranges are %v", got)
	}
	r.clock.advance(grace)
	replacing = false
	r.loop.r.tables = r.tables.(*maps.Faulty).Tables
	r.settle()
	if got := r.dump().SourceRangesOf(v.Id); !slices.Equal(got, prefixes("198.51.100.0/24")) {
		t.Errorf("the ranges are %v", got)
	}
}

// flags returns the flags of a TCP frontend, and whether it exists.
func (r *rig) flags(frontend string) (uint16, bool) {
	v, there := r.dump().Frontends[fe(frontend, TCP)]
	return v.Flags, there
}

// TestSourcesFull checks that with map sources full, a load-balancer IP whose ranges have no room
// is not programmed, rather than open to all clients, whatever it was before. Everything else of
// the service works.
func TestSourcesFull(t *testing.T) {
	sizes := roomy
	sizes.Sources = 3
	eachTables(t, sizes, func(t *testing.T, tables maps.Tables) {
		clock := newTestClock()
		r := newRig(t, newGuard(t, tables, clock), clock)
		one := func(name, clusterIP, vip string, ranges ...string) *Service {
			return service(name, clusterIP, "http:80/TCP").with(func(s *Service) {
				s.LoadBalancerIPs, s.SourceRanges = addrs(vip), prefixes(ranges...)
			})
		}
		fails := func(what, name string) {
			t.Helper()
			r.mustStep()
			troubles := r.claimProblems(name)
			if len(troubles) != 1 || !strings.Contains(troubles[0].Error, "map sources is full") ||
				!strings.Contains(troubles[0].Error, maps.FlagSources) || r.loop.Status().Problems.Total != 1 {
				t.Fatalf("%s: %+v", what, r.loop.Status().Problems)
			}
		}
		is := func(what, frontend string, wantThere bool, want uint16) {
			t.Helper()
			if got, there := r.flags(frontend); there != wantThere || got&maps.SourceRanges != want {
				t.Errorf("%s: %s is there: %t, flags %#x", what, frontend, there, got)
			}
		}
		r.store.SetService(one("a", "10.96.0.1", "1.1.1.1", "10.0.0.0/8", "11.0.0.0/8"))
		r.store.SetService(one("open", "10.96.0.3", "1.1.1.3"))
		r.store.SetSlice(slice("open", "open", "http:8080/TCP", "10.0.0.1"))
		r.mustStep()

		r.store.SetService(one("b", "10.96.0.2", "1.1.1.2", "10.0.0.0/8", "11.0.0.0/8"))
		fails("a new service", "b")
		is("a new service's load-balancer IP", "1.1.1.2:80", false, 0)
		is("its cluster IP", "10.96.0.2:80", true, 0)
		is("a service that fits", "1.1.1.1:80", true, maps.SourceRanges)
		r.store.DeleteService(svcName("b"))
		r.mustStep()

		r.store.SetService(one("open", "10.96.0.3", "1.1.1.3", "10.0.0.0/8", "11.0.0.0/8"))
		r.store.SetSlice(slice("open", "open", "http:8080/TCP", "10.0.0.2"))
		fails("ranges for a service that had none", "open")
		is("what was open", "1.1.1.3:80", false, 0)
		if to := r.leads("10.96.0.3:80"); to != "10.0.0.2:8080" {
			t.Errorf("its cluster IP leads to %s: endpoints must change all the same", to)
		}
		r.store.SetService(one("open", "10.96.0.3", "1.1.1.3"))
		r.mustStep()

		r.store.SetService(one("a", "10.96.0.1", "1.1.1.1", "10.0.0.0/8", "12.0.0.0/8", "13.0.0.0/8", "14.0.0.0/8"))
		fails("more ranges", "a")
		is("what was restricted", "1.1.1.1:80", false, 0)
		r.store.SetService(one("a", "10.96.0.1", "1.1.1.1", "10.0.0.0/8", "12.0.0.0/8", "13.0.0.0/8"))
		r.settle()
		r.sameAs(r.fresh(), "with room again")
		if d := r.dump(); len(d.Sources) != 3 {
			t.Errorf("%+v", d.Sources)
		}
	})
}

// oddSourceRange is Tables with a range that no daemon writes: its prefix covers only a part of the
// service id, so it would admit clients to many services.
type oddSourceRange struct {
	maps.Tables
	odd  maps.SourceRangeKey
	gone bool
}

func (o *oddSourceRange) Dump() (*maps.Dump, error) {
	d, err := o.Tables.Dump()
	if err == nil && !o.gone {
		d.Sources[o.odd] = true
	}
	return d, err
}

func (o *oddSourceRange) DeleteSourceRange(k maps.SourceRangeKey) error {
	o.gone = o.gone || k == o.odd
	return o.Tables.DeleteSourceRange(k)
}

func TestOddSourceRangeIsRemoved(t *testing.T) {
	fake := maps.NewFake(roomy)
	r := newRig(t, fake, newTestClock())
	r.store.SetService(rangedService("10.0.0.0/8"))
	r.mustStep()
	odd := maps.NewSourceRangeKey(r.dump().Frontends[fe("1.1.1.2:80", TCP)].Id, netip.MustParsePrefix("10.0.0.0/8"))
	odd.PrefixBits = 12
	tables := &oddSourceRange{Tables: fake, odd: odd}
	r.tables = tables
	r.start()
	if got := r.mustStep().Writes; got != (maps.Writes{Sources: 1}) || !tables.gone {
		t.Errorf("writes %+v, it is gone: %t", got, tables.gone)
	}
	r.sameAs(r.fresh(), "after that")
}

// TestSourcesOfALeftoverID checks that while source ranges cannot be deleted, no other service gets
// their id, and its name is not deleted.
func TestSourcesOfALeftoverID(t *testing.T) {
	fake := maps.NewFake(roomy)
	stuck := true
	r := newRig(t, &maps.Faulty{Tables: fake, Fail: func(method string) error {
		if stuck && method == "DeleteSourceRange" {
			return errFault
		}
		return nil
	}}, newTestClock())
	if err := errors.Join(fake.SetSourceRange(maps.NewSourceRangeKey(1, prefixes("0.0.0.0/0")[0])),
		fake.SetName(2, maps.Name{Namespace: "x", Name: "y", Family: 4}), // without a protocol
		fake.SetSourceRange(maps.NewSourceRangeKey(2, prefixes("0.0.0.0/0")[0]))); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.store.SetService(rangedService("10.0.0.0/8"))
	for range 3 {
		if rep := r.step(); !errors.Is(rep.Err, errFault) {
			t.Fatalf("%+v", rep)
		}
		r.clock.advance(grace)
		d := r.dump()
		if id := d.Frontends[fe("1.1.1.2:80", TCP)].Id; id < 3 || !slices.Equal(d.SourceRangesOf(id), prefixes("10.0.0.0/8")) {
			t.Errorf("service id %d has sources %v", id, d.SourceRangesOf(id))
		}
		if _, named := d.Names[2]; !named {
			t.Error("the name is gone, and the id may be another service's")
		}
	}
	stuck = false
	r.settle()
	r.sameAs(r.fresh(), "when they can be removed")
}
