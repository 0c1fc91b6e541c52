// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"shunt/maps"
)

// BenchmarkEndpointChoice chooses among the 1,000 endpoints of one service port, in ten slices as
// the controller makes them, each with a zone hint; every tenth is terminating. An op is the work
// of the policy for one changed endpoint. On a machine with other work only the CPU time is
// meaningful.
func BenchmarkEndpointChoice(b *testing.B) {
	const perSlice = 100
	// With this nearly empty heap the garbage collector would run fifty times as often as in a
	// daemon.
	defer debug.SetGCPercent(debug.SetGCPercent(1000))
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			svc := service("web", "10.96.0.1", "http:80/TCP:30080")
			var all []*EndpointSlice
			for i := range n {
				if i%perSlice == 0 {
					all = append(all, slice(fmt.Sprintf("web-%d", i/perSlice), "web", "http:8080/TCP"))
				}
				e := Endpoint{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i % 251), byte(i / 251)}), Ready: true, Serving: true,
					Node: []string{"me", "you", "other"}[i%3], Hints: &Hints{Zones: []string{[]string{"z1", "z2"}[i%2]}}}
				if i%10 == 0 {
					e.Ready, e.Terminating = false, true
				}
				s := all[len(all)-1]
				s.Endpoints = append(s.Endpoints, e)
			}
			var plans []portPlan
			began := cpuTime(b)
			for b.Loop() {
				plans = planService(svc, all, here)
			}
			b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N), "cpu-ns/op")
			// Ready endpoints of this zone: all terminating ones are in this zone.
			if used := len(plans[0].inSet(maps.ClusterSet)); used != n/2-n/10 {
				b.Fatalf("%d endpoints are used, want %d", used, n/2-n/10)
			}
		})
	}
}

// cpuTime returns the CPU time that this process has used, including its garbage collector.
func cpuTime(b testing.TB) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// restart does a rolling restart of one service, as the controller shows it: one endpoint at a time
// is listed with its successor, then terminates, then is removed. Each change of the slice is
// reconciled. The endpoints of the service start at number from. It returns all writes.
func restart(r *rig, svc, from, perService int) (writes maps.Writes) {
	step := func(change func(*EndpointSlice)) {
		s := numberedSlice(svc, 0, 0)
		change(s)
		r.store.SetSlice(s)
		r.clock.advance(grace)
		writes.Add(r.mustStep().Writes)
		r.heard.reports = r.heard.reports[:0]
	}
	for e := from; e < from+perService; e++ {
		old, after := numberedSlice(svc, e, perService), numberedSlice(svc, e+1, perService)
		step(func(s *EndpointSlice) { // the new endpoint is ready
			s.Endpoints = append(old.Endpoints, after.Endpoints[perService-1])
		})
		step(func(s *EndpointSlice) { // the old endpoint terminates
			s.Endpoints = append(numberedSlice(svc, e, perService).Endpoints, after.Endpoints[perService-1])
			s.Endpoints[0].Ready, s.Endpoints[0].Terminating = false, true
		})
		step(func(s *EndpointSlice) { s.Endpoints = after.Endpoints })
	}
	return writes
}

func restartRig(t testing.TB, services, perService int) *rig {
	t.Helper()
	clock := newTestClock()
	r := newRig(t, maps.NewFake(numberedSizes(services)), clock)
	for i := range services {
		r.store.SetService(numberedService(i))
		r.store.SetSlice(numberedSlice(i, 0, perService))
	}
	r.mustStep()
	return r
}

// TestRollingRestartWrites checks that the writes for a restarted endpoint do not depend on the
// number of services: its backend and its successor's with their flags, the frontend at each change
// of the set, and the slots of the sets.
func TestRollingRestartWrites(t *testing.T) {
	const perService = 5
	for _, services := range []int{10, 1000} {
		r := restartRig(t, services, perService)
		var total maps.Writes
		const restarted = 4
		for i := range restarted {
			total.Add(restart(r, i, 0, perService))
		}
		const endpoints = restarted * perService
		// Backends: the new one, two flags of the old one, its removal. Slots: sets of six, of
		// five.
		want := maps.Writes{Backends: 4 * endpoints, Frontends: 2 * endpoints, Slots: (6 + 5) * endpoints}
		if total != want {
			t.Errorf("%d services: %d restarted endpoints cost %+v, want %+v", services, endpoints, total, want)
		}
		r.sameAs(r.fresh(), "after the restart")
	}
}

// BenchmarkRollingRestart restarts 5,000 endpoints of 1,000 services, again and again. An op is a
// service; the writes are per endpoint.
func BenchmarkRollingRestart(b *testing.B) {
	const services, perService = 1000, 5
	r := restartRig(b, services, perService)
	var writes maps.Writes
	for i := 0; b.Loop(); i++ {
		writes.Add(restart(r, i%services, i/services*perService, perService))
	}
	endpoints := float64(b.N * perService)
	b.ReportMetric(float64(writes.Backends)/endpoints, "record-writes/endpoint")
	b.ReportMetric(float64(writes.Frontends)/endpoints, "frontend-writes/endpoint")
	b.ReportMetric(float64(writes.Slots)/endpoints, "slot-writes/endpoint")
}

// BenchmarkChangeAmongFailing changes one service beside many that cannot be programmed. The cost
// of an op does not depend on their number.
func BenchmarkChangeAmongFailing(b *testing.B) {
	for _, failing := range []int{0, 5000} {
		b.Run(fmt.Sprintf("failing=%d", failing), func(b *testing.B) {
			s := newStubborn(b, numberedSizes(failing+1))
			for i := range failing {
				s.broken[svcName(numberedName(i))] = true
				s.store.SetService(numberedService(i))
			}
			s.store.SetService(numberedService(failing))
			s.run()
			for i := 0; b.Loop(); i++ {
				s.store.SetSlice(numberedSlice(failing, i, 1))
				s.clock.advance(grace)
				s.run()
				s.heard.reports = s.heard.reports[:0:0]
			}
		})
	}
}
