// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// claimProblems returns the published problems of one service.
func (r *rig) claimProblems(name string) []Problem {
	var list []Problem
	for _, p := range r.loop.Status().Problems.List {
		if p.Service == svcName(name) {
			list = append(list, p)
		}
	}
	return list
}

// flood returns a service with ips external IPs and the given number of ports. It is older than the
// others.
func flood(ips, ports int) *Service {
	s := service("a-flood", "10.96.255.1")
	s.Created = time.Unix(1, 0)
	for i := range ports {
		s.Ports = append(s.Ports, ServicePort{Name: fmt.Sprint("p", i), Protocol: TCP, Port: uint16(1000 + i)})
	}
	for i := range ips {
		s.ExternalIPs = append(s.ExternalIPs, netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}))
	}
	return s
}

// TestFloodServiceHarmsNobody has an older Service ask for more than there is room for. Ordinary
// services that are added after it or together with it are served, and it keeps the remaining room,
// in any order of arrival.
func TestFloodServiceHarmsNobody(t *testing.T) {
	sizes := maps.Sizes{Services: 400, Slots: 1024, Backends: 512, Affinity: 16, Sources: 16, Flows: 16}
	for _, order := range []string{"flood first", "flood last", "together", "adopted"} {
		t.Run(order, func(t *testing.T) {
			eachTables(t, sizes, func(t *testing.T, tables maps.Tables) {
				r := newRig(t, tables, newTestClock())
				ordinary := func() {
					for i := range 40 {
						r.store.SetService(numberedService(i).with(func(s *Service) {
							s.Created, s.Ports[0].NodePort = time.Unix(int64(100+i), 0), uint16(30000+i)
						}))
						r.store.SetSlice(numberedSlice(i, 0, 10))
						if order == "flood first" {
							r.mustStep() // without time for ids to rest
						}
					}
				}
				if order == "flood last" {
					ordinary()
					r.mustStep()
				}
				r.store.SetService(flood(132, 10))
				if order == "flood first" || order == "adopted" {
					r.mustStep()
				}
				if order != "flood last" {
					ordinary()
				}
				if order == "adopted" {
					r.start()
				}
				r.settle()
				for i := range 40 {
					ip := fmt.Sprintf("10.96.0.%d:80", i)
					if to := r.leads(ip); strings.Count(to, ",") != 9 {
						t.Fatalf("service %d leads to %s", i, to)
					}
				}
				d := r.dump()
				if n := r.loop.r.entries; n != 400 || len(d.Frontends) != 400+41 {
					t.Errorf("%d entries of 400 are used, %d frontends in all", n, len(d.Frontends))
				}
				r.sameAs(r.fresh(), order)
			})
		})
	}
}

// TestCutService checks that a service has no more frontends than the limit, always the same ones,
// by rank, and that a problem reports it.
func TestCutService(t *testing.T) {
	r := newGuardedRig(t)
	r.loop.o.MaxFrontends = 12
	svc := flood(30, 4).with(func(s *Service) {
		s.LoadBalancerIPs = addrs("1.1.1.1")
		for i := range s.Ports {
			s.Ports[i].NodePort = uint16(30000 + i)
		}
	})
	r.store.SetService(svc)
	r.mustStep()
	kinds := map[maps.FrontendKind]int{}
	for _, v := range r.dump().Frontends {
		kinds[maps.FrontendKind(v.Kind)]++
	}
	// 1 + 4 for the cluster IP, 4 node ports, and 3 of 4 at the load-balancer IP.
	if kinds[maps.ClusterIP] != 4 || kinds[maps.UndefinedPort] != 1 || kinds[maps.NodePort] != 4 ||
		kinds[maps.LoadBalancerIP] != 3 || kinds[maps.ExternalIP] != 0 {
		t.Errorf("the kinds are %v", kinds)
	}
	if p := r.claimProblems("a-flood"); len(p) != 1 || p[0].Kind != maps.Cut || !strings.Contains(p[0].Error, "121 frontends more") {
		t.Errorf("it is said: %+v", p)
	}
	r.store.SetService(svc.with(func(s *Service) { s.ExternalIPs, s.LoadBalancerIPs = nil, nil }))
	r.mustStep()
	if n := r.loop.Status().Problems.Total; n != 0 {
		t.Errorf("%d problems, with nothing cut", n)
	}
}

// TestIssueFlood is the reported case, on real maps of the default sizes and with the default
// limit: 1,320 external IPs and 100 ports in one object, older than 40 ordinary services, whose
// cluster IPs it asks for too.
func TestIssueFlood(t *testing.T) {
	r := newRig(t, mapstest.New(t, maps.DefaultSizes()), newTestClock())
	r.loop.o.MaxFrontends = 4096
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/12"))
	r.store.SetService(flood(1320, 100).with(func(s *Service) {
		for i := range 40 {
			s.ExternalIPs = append(s.ExternalIPs, numberedService(i).ClusterIPs[0])
		}
	}))
	r.mustStep()
	for i := range 40 {
		r.store.SetService(numberedService(i).with(func(s *Service) { s.Created = time.Unix(100, 0) }))
		r.store.SetSlice(numberedSlice(i, 0, 2))
	}
	r.mustStep()
	for i := range 40 {
		if to := r.leads(fmt.Sprintf("10.96.0.%d:80", i)); strings.Count(to, ",") != 1 {
			t.Errorf("service %d leads to %q", i, to)
		}
	}
	if n := r.loop.r.entries; n != 4095+40 {
		t.Errorf("%d entries, want 4,095 of the flood and 40", n)
	}
	kinds := map[maps.ProblemKind]bool{}
	for _, p := range r.claimProblems("a-flood") {
		kinds[p.Kind] = true
	}
	if !kinds[maps.Cut] || !kinds[maps.Refused] {
		t.Errorf("the problems are of the kinds %v", kinds)
	}
	r.sameAs(r.fresh(), "with the flood")
}
