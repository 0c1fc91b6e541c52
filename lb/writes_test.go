// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"testing"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// numbered fills a store with services of 10 endpoints each, over IPv4.
func numbered(st *Store, services int) {
	for i := range services {
		st.SetService(numberedService(i))
		st.SetSlice(numberedSlice(i, 0, 10))
	}
}

func numberedName(i int) string { return fmt.Sprintf("svc-%d", i) }

func numberedService(i int) *Service {
	ip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
	return service(numberedName(i), ip.String(), "http:80/TCP")
}

// numberedSlice returns a slice of n endpoints, starting at number from.
func numberedSlice(i, from, n int) *EndpointSlice {
	s := slice(numberedName(i)+"-1", numberedName(i), "http:8080/TCP")
	for e := from; e < from+n; e++ {
		s.Endpoints = append(s.Endpoints, Endpoint{
			Addr: netip.AddrFrom4([4]byte{10, byte(e), byte(i >> 8), byte(i)}), Ready: true, Serving: true, Node: "other"})
	}
	return s
}

// numberedRanged returns service 3 as the tests before it left it, with a load-balancer IP that
// these ranges restrict.
func numberedRanged(ranges ...string) *Service {
	return numberedService(3).with(func(s *Service) {
		s.AffinityTimeout, s.ExternalLocal, s.Ports[0].NodePort = 5e9, true, 30080
		s.LoadBalancerIPs, s.SourceRanges = addrs("1.1.1.2"), prefixes(ranges...)
	})
}

func numberedSizes(services int) maps.Sizes {
	n := uint32(max(services, 10))
	return maps.Sizes{Services: 2 * n, Slots: 20 * n, Backends: 12 * n, Affinity: 16, Sources: 16, Flows: 16}
}

// TestWriteCounts checks the writes of each kind that a change of one service costs. They are the
// same with 10 services and with 10,000.
func TestWriteCounts(t *testing.T) {
	type w = maps.Writes
	changes := []struct {
		what   string
		change func(*Store)
		want   w
	}{
		{"an endpoint more", func(s *Store) { s.SetSlice(numberedSlice(3, 0, 11)) }, w{Frontends: 1, Slots: 11, Backends: 1}},
		{"an endpoint less", func(s *Store) { s.SetSlice(numberedSlice(3, 0, 10)) }, w{Frontends: 1, Slots: 10, Backends: 1}},
		{"an endpoint replaced", func(s *Store) { s.SetSlice(numberedSlice(3, 1, 10)) }, w{Frontends: 1, Slots: 10, Backends: 2}},
		{"an endpoint terminates", func(s *Store) {
			sl := numberedSlice(3, 1, 10)
			sl.Endpoints[4].Ready, sl.Endpoints[4].Terminating = false, true
			s.SetSlice(sl)
		}, w{Frontends: 1, Slots: 9, Backends: 2}}, // terminating is set first, the cluster set cleared last
		{"the same again", func(s *Store) {
			sl := numberedSlice(3, 1, 10)
			sl.Endpoints[4].Ready, sl.Endpoints[4].Terminating = false, true
			s.SetSlice(sl)
		}, w{}},
		{"an endpoint moves to this node", func(s *Store) {
			sl := numberedSlice(3, 1, 10)
			sl.Endpoints[0].Node = "me"
			s.SetSlice(sl)
		}, w{Frontends: 1, Slots: 10, Backends: 3}}, // number 4 is ready again, too
		{"all endpoints go", func(s *Store) { s.DeleteSlice(SliceName{"default", "svc-3-1"}) }, w{Frontends: 1, Backends: 10}},
		{"they come back", func(s *Store) { s.SetSlice(numberedSlice(3, 0, 10)) }, w{Frontends: 1, Slots: 10, Backends: 10}},
		{"affinity", func(s *Store) {
			s.SetService(numberedService(3).with(func(s *Service) { s.AffinityTimeout = 5e9 }))
		}, w{Frontends: 1}},
		{"a node port, which is of one family as the cluster IP", func(s *Store) {
			s.SetService(numberedService(3).with(func(s *Service) { s.AffinityTimeout = 5e9; s.Ports[0].NodePort = 30080 }))
		}, w{Frontends: 1}},
		{"the policy of traffic from outside: the node port's set", func(s *Store) {
			s.SetService(numberedService(3).with(func(s *Service) {
				s.AffinityTimeout, s.ExternalLocal, s.Ports[0].NodePort = 5e9, true, 30080
			}))
		}, w{Frontends: 1}},
		{"a load-balancer IP with source ranges", func(s *Store) { s.SetService(numberedRanged("10.0.0.0/8", "11.0.0.0/8")) },
			w{Frontends: 1, Sources: 2}},
		{"another source range", func(s *Store) { s.SetService(numberedRanged("10.0.0.0/8", "12.0.0.0/8")) }, w{Sources: 2}},
		{"source ranges of the other family only", func(s *Store) { s.SetService(numberedRanged("fd00::/8")) }, w{Frontends: 1, Sources: 2}},
		{"and of this one again", func(s *Store) { s.SetService(numberedRanged("fd00::/8", "11.0.0.0/8")) }, w{Frontends: 1, Sources: 1}},
		{"no load-balancer IP any more", func(s *Store) {
			s.SetService(numberedRanged("fd00::/8", "11.0.0.0/8").with(func(s *Service) { s.LoadBalancerIPs = nil }))
		}, w{Frontends: 1, Sources: 1}},
		{"the service goes", func(s *Store) { s.DeleteService(svcName("svc-3")) }, w{Frontends: 3, Backends: 10, Names: 1}},
		{"an unknown service's slice", func(s *Store) { s.SetSlice(numberedSlice(3, 0, 4)) }, w{}},
		{"the service comes back", func(s *Store) { s.SetService(numberedService(3)) }, w{Frontends: 2, Slots: 4, Backends: 4, Names: 1}},
		{"the node's addresses", func(s *Store) { s.SetNodeAddrs(nodeAddrs) }, w{NodeAddrs: 6}},
		{"one of them", func(s *Store) { s.SetNodeAddrs(nodeAddrs[:3]) }, w{NodeAddrs: 1}},
		{"service CIDRs", func(s *Store) { s.SetServiceCIDRs(prefixes("10.96.0.0/16", "fd96::/112")) }, w{ServiceCidrs: 2}},
		{"another one instead of the second", func(s *Store) { s.SetServiceCIDRs(prefixes("10.96.0.0/16", "10.97.0.0/16")) }, w{ServiceCidrs: 2}},
		{"the zone, with no hints anywhere", func(s *Store) { s.SetNode(&Node{Name: "me", Zone: "z"}) }, w{}},
	}
	for _, n := range []int{10, 10000} {
		t.Run(fmt.Sprintf("%d services", n), func(t *testing.T) {
			if n > 10 && testing.Short() {
				t.Skip("short")
			}
			r := newRig(t, maps.NewFake(numberedSizes(n)), newTestClock())
			numbered(r.store, n)
			u := uint64(n)
			if got, want := r.mustStep().Writes, (w{Frontends: 2 * u, Slots: 10 * u, Backends: 10 * u, Names: u}); got != want {
				t.Fatalf("the first time: %+v, want %+v", got, want)
			}
			for _, c := range changes {
				c.change(r.store)
				r.clock.advance(grace)
				if got := r.mustStep().Writes; got != c.want {
					t.Errorf("%s: %+v, want %+v", c.what, got, c.want)
				}
			}
		})
	}
}

// TestWritesAreCounted checks that the counts of writes equal the calls of the tables.
func TestWritesAreCounted(t *testing.T) {
	clock := newTestClock()
	g := newGuard(t, maps.NewFake(numberedSizes(10)), clock)
	r := newRig(t, g, clock)
	numbered(r.store, 5)
	r.store.SetNodeAddrs(nodeAddrs)
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/16"))
	for range 3 {
		got := r.mustStep().Writes
		if got != g.writes {
			t.Errorf("reported are %+v, the maps saw %+v", got, g.writes)
		}
		g.writes = maps.Writes{}
		r.store.DeleteService(svcName("svc-1"))
		r.store.SetSlice(numberedSlice(2, 4, 7))
	}
}

// BenchmarkEndpointChange replaces one endpoint of one of many services.
func BenchmarkEndpointChange(b *testing.B) {
	for _, on := range []string{"fake", "kernel"} {
		for _, n := range []int{10, 1000, 10000} {
			b.Run(fmt.Sprintf("%s/services=%d", on, n), func(b *testing.B) {
				tables := func() maps.Tables {
					if on == "fake" {
						return maps.NewFake(numberedSizes(n))
					}
					return mapstest.New(b, maps.DefaultSizes())
				}()
				benchmarkEndpointChange(b, newRig(b, tables, newTestClock()), n)
			})
		}
	}
}

func benchmarkEndpointChange(b *testing.B, r *rig, n int) {
	numbered(r.store, n)
	r.mustStep()
	var writes uint64
	i := 0
	for b.Loop() {
		r.clock.advance(grace) // so that slot ranges are free again, as between changes in practice
		r.store.SetSlice(numberedSlice((i*7)%n, i/n%2+1, 10))
		writes += r.mustStep().Writes.Total()
		r.heard.reports = r.heard.reports[:0]
		i++
	}
	b.ReportMetric(float64(writes)/float64(b.N), "writes/op")
}

// BenchmarkFirstSync programs 10,000 services of 10 endpoints into empty maps.
func BenchmarkFirstSync(b *testing.B) {
	const services = 10000
	for range b.N {
		b.StopTimer()
		r := newRig(b, mapstest.New(b, maps.DefaultSizes()), newTestClock())
		numbered(r.store, services)
		b.StartTimer()
		rep := r.step()
		b.StopTimer()
		if rep.Err != nil || rep.Writes.Backends != 10*services {
			b.Fatalf("%v, %+v", rep.Err, rep.Writes)
		}
		b.StartTimer()
	}
	b.ReportMetric(services, "services/op")
}

// BenchmarkAdopt is a restart with 10,000 unchanged services.
func BenchmarkAdopt(b *testing.B) {
	r := newRig(b, mapstest.New(b, maps.DefaultSizes()), newTestClock())
	numbered(r.store, 10000)
	r.mustStep()
	for b.Loop() {
		r.start()
		if rep := r.mustStep(); rep.Writes.Total() != 0 {
			b.Fatalf("%+v", rep.Writes)
		}
	}
}
