// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"shunt/maps"
)

// large returns a service like flood's, with load-balancer IPs, and its slice, with the given
// numbers of addresses, ports, source ranges and endpoints.
func large(ips, ports, ranges, endpoints int) (*Service, *EndpointSlice) {
	svc := flood(0, ports).with(func(s *Service) {
		for i := range ips {
			s.LoadBalancerIPs = append(s.LoadBalancerIPs, netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}))
		}
		for i := range ranges {
			s.SourceRanges = append(s.SourceRanges, netip.PrefixFrom(netip.AddrFrom4([4]byte{7, 7, byte(i >> 8), byte(i)}), 32))
		}
	})
	sl := slice("a-flood-1", "a-flood", "")
	for i := range endpoints {
		sl.Endpoints = append(sl.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Ready: true, Serving: true})
	}
	for _, p := range svc.Ports {
		sl.Ports = append(sl.Ports, EndpointPort{p.Name, p.Protocol, 8080})
	}
	return svc, sl
}

// TestLargeServiceCostsItsSize adds, changes, hands over, adopts and deletes one Service of about
// the largest size of each kind. The time must be proportional to the size: a quadratic algorithm
// took minutes.
func TestLargeServiceCostsItsSize(t *testing.T) {
	const most = 20 * time.Second
	for _, test := range []struct {
		name                          string
		ips, ports, ranges, endpoints int
		maxFrontends                  int
	}{
		{"addresses", 60000, 1, 0, 0, 0},
		{"the issue's", 1320, 100, 0, 0, 0},
		{"ports", 1, 30000, 0, 0, 0},
		{"ports, cut", 20, 10000, 0, 0, 4096},
		{"ranges", 1, 1, 60000, 0, 4096},
		{"endpoints", 1, 1, 0, 120000, 4096},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, maps.NewFake(maps.DefaultSizes()), newTestClock())
			r.loop.o.MaxFrontends = test.maxFrontends
			stage := func(what string, do func()) {
				t.Helper()
				do()
				began := cpuTime(t)
				r.step()
				if took := cpuTime(t) - began; took > most {
					t.Errorf("%s took %v", what, took)
				}
				r.clock.advance(time.Second)
			}
			svc, sl := large(test.ips, test.ports, test.ranges, test.endpoints)
			small, few := large(1, 1, min(1, test.ranges), 1)
			add := func() { r.store.SetService(svc); r.store.SetSlice(sl) }
			stage("to add it", add)
			stage("to add a small one beside it", func() { r.store.SetService(numberedService(1)); r.store.SetSlice(numberedSlice(1, 0, 2)) })
			stage("to adopt it", func() { r.start(); r.loop.o.MaxFrontends = test.maxFrontends })
			stage("to cut it", func() { r.store.SetService(small); r.store.SetSlice(few) })
			stage("to have it again", add)
			stage("to hand its addresses to an older one", func() {
				r.store.SetService(svc.with(func(s *Service) {
					s.Name.Name, s.Created, s.ClusterIPs = "b-flood", time.Unix(0, 1), addrs("10.96.255.2")
				}))
			})
			stage("to remove both", func() {
				r.store.DeleteService(svc.Name)
				r.store.DeleteService(svcName("b-flood"))
				r.store.DeleteSlice(sl.Name)
			})
			if d := r.dump(); len(d.Frontends) != 2 {
				t.Errorf("%s", fmt.Sprint(len(d.Frontends), " frontends are left, want those of the small one"))
			}
		})
	}
}
