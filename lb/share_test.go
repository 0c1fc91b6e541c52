// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"shunt/maps"
)

// hungry returns the oldest service. It asks for all of one resource in maps of these sizes, at one
// port.
func hungry(sizes maps.Sizes, of resource) (*Service, *EndpointSlice) {
	svc := service("a-hungry", "10.96.255.1", "p:80/TCP").with(func(s *Service) { s.Created = time.Unix(1, 0) })
	sl := slice("a-hungry-1", "a-hungry", "p:8080/TCP")
	endpoints := 1
	switch of {
	case ofRecords:
		endpoints = int(sizes.Backends) - 1
	case ofSlots:
		endpoints = int(sizes.Slots) / 2
		svc = svc.with(func(s *Service) { s.ExternalLocal, s.Ports[0].NodePort = true, 32000 })
	case ofSources:
		svc = svc.with(func(s *Service) {
			s.LoadBalancerIPs = addrs("198.51.100.1")
			for i := range int(sizes.Sources) - exceptionRoom(sizes) {
				s.SourceRanges = append(s.SourceRanges, netip.PrefixFrom(netip.AddrFrom4([4]byte{7, 7, byte(i >> 8), byte(i)}), 32))
			}
		})
	}
	for i := range endpoints {
		e := Endpoint{Addr: netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}), Ready: true, Serving: true}
		if i%2 == 0 {
			e.Node = "me"
		}
		sl.Endpoints = append(sl.Endpoints, e)
	}
	return svc, sl
}

// TestOneServiceHasItsShare has the oldest Service ask for as many endpoints, slots or source
// ranges as a map has in all. The other services are served in full, in any order of arrival, and a
// problem of the Service says why it is not. With room it is served.
func TestOneServiceHasItsShare(t *testing.T) {
	for of, sizes := range map[resource]maps.Sizes{
		ofRecords: {Services: 512, Slots: 2048, Backends: 512, Affinity: 16, Sources: 256, Flows: 16},
		ofSlots:   {Services: 512, Slots: 512, Backends: 1024, Affinity: 16, Sources: 256, Flows: 16},
		ofSources: {Services: 512, Slots: 2048, Backends: 512, Affinity: 16, Sources: 256, Flows: 16},
	} {
		for _, order := range []string{"hungry first", "hungry last", "together", "adopted"} {
			t.Run(of.fullError(sizes).Map+", "+order, func(t *testing.T) {
				r := newRig(t, maps.NewFake(sizes), newTestClock())
				svc, sl := hungry(sizes, of)
				ask := func() { r.store.SetService(svc); r.store.SetSlice(sl) }
				others := func() {
					for i := range 30 {
						r.store.SetService(numberedService(i).with(func(s *Service) {
							s.Created = time.Unix(int64(100+i), 0)
							if of == ofSources {
								s.LoadBalancerIPs = addrs(fmt.Sprintf("198.51.101.%d", i))
								s.SourceRanges = prefixes("203.0.113.0/24", "192.0.2.0/24")
							}
						}))
						r.store.SetSlice(numberedSlice(i, 0, 10))
					}
				}
				if order == "hungry last" {
					others()
					r.settle()
				}
				ask()
				if order == "hungry first" || order == "adopted" {
					r.settle()
					if n := len(r.claimProblems("a-hungry")); n != 0 {
						t.Errorf("alone it has %d problems", n)
					}
				}
				if order != "hungry last" {
					others()
				}
				if order == "adopted" {
					r.start()
				}
				r.settle()
				d := r.dump()
				for i := range 30 {
					if to := r.leads(fmt.Sprintf("10.96.0.%d:80", i)); strings.Count(to, ",") != 9 {
						t.Fatalf("service %d leads to %s", i, to)
					}
					v, there := d.Frontends[fe(fmt.Sprintf("198.51.101.%d:80", i), TCP)]
					if of == ofSources && (!there || len(d.SourceRangesOf(v.Id)) != 2) {
						t.Fatalf("service %d has the load balancer's IP %t with %d ranges", i, there, len(d.SourceRangesOf(v.Id)))
					}
				}
				said := r.claimProblems("a-hungry")
				if len(said) == 0 || said[0].Kind != maps.NoRoom || !strings.Contains(said[0].Error, "more than a sixteenth") {
					t.Errorf("it is said: %+v", said)
				}
				r.sameAs(r.fresh(), order)
				for i := range 30 {
					r.store.DeleteService(numberedService(i).Name)
				}
				r.clock.advance(time.Second)
				r.settle()
				if n := len(r.claimProblems("a-hungry")); n != 0 {
					t.Errorf("alone again it has %d problems", n)
				}
			})
		}
	}
}

// TestLargeServiceIsServed checks that a service with 5,000 endpoints of both families and two
// ports has no problems by default, and neither has one that exceeds its share, as long as there is
// room.
func TestLargeServiceIsServed(t *testing.T) {
	for _, endpoints := range []int{5000, 30000} {
		r := newRig(t, maps.NewFake(maps.DefaultSizes()), newTestClock())
		r.store.SetService(service("web", "10.96.0.1 fd96::1", "p:80/TCP", "q:81/TCP"))
		for _, family := range []string{"10.200.%d.%d", "fd00:200::%x:%x"} {
			sl := slice("web"+family[:2], "web", "p:8080/TCP q:8081/TCP")
			for i := range endpoints {
				a := netip.MustParseAddr(fmt.Sprintf(family, i/256, i%256))
				sl.Endpoints = append(sl.Endpoints, Endpoint{Addr: a, Ready: true, Serving: true})
			}
			r.store.SetSlice(sl)
		}
		for i := range 200 {
			r.store.SetService(numberedService(i + 2))
			r.store.SetSlice(numberedSlice(i+2, 0, 10))
		}
		r.mustStep()
		for _, frontend := range []string{"10.96.0.1:80", "[fd96::1]:81"} {
			if n := strings.Count(r.leads(frontend), ",") + 1; n != endpoints {
				t.Errorf("%s leads to %d endpoints, want %d", frontend, n, endpoints)
			}
		}
		if n := r.loop.Status().Problems.Total; n != 0 {
			t.Errorf("with %d endpoints there are %d problems", endpoints, n)
		}
	}
}
