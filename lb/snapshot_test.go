// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"sync"
	"testing"

	"shunt/maps"
)

// TestStatusDuringReconcile checks that a Status shares nothing with the loop that the loop
// modifies later: probes read it while reconciles run. Services with source ranges are looked at
// again when an address of the node changes: they join a reconcile under way. (Reading a Go map
// while it is written ends the process, even without the race detector.)
func TestStatusDuringReconcile(t *testing.T) {
	const ranged = 100
	clock := newTestClock()
	sizes := numberedSizes(ranged)
	sizes.Sources = 2 * ranged
	r := newRig(t, maps.NewFake(sizes), clock)
	for i := range ranged {
		r.store.SetService(numberedService(i).with(func(s *Service) {
			s.LoadBalancerIPs = addrs("1.1.1.1")
			s.Ports[0].Port = uint16(1000 + i)
			s.SourceRanges = prefixes("192.168.0.0/16")
		}))
	}
	r.mustStep()

	stop := make(chan struct{})
	var probes sync.WaitGroup
	for range 2 {
		probes.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := r.loop.Status()
				// No Service changes here. Those that the address affects do not count as changes.
				if s.ServiceChangesPending > 0 || s.EndpointChangesPending > 1 {
					t.Errorf("%d changes of Services and %d of endpoints are pending, of none and one",
						s.ServiceChangesPending, s.EndpointChangesPending)
					return
				}
				for range s.NoLocalEndpoints {
				}
				for range s.Fill {
				}
				for range s.NodePortAddrs {
				}
			}
		})
	}
	for i := range 50 {
		r.store.SetNodeAddrs(nodeAddrs[i%2*3:]) // with 192.168.0.1, and without
		r.store.SetSlice(numberedSlice(i, 0, 1+i%3))
		clock.advance(grace)
		if rep := r.mustStep(); rep.Services < ranged {
			t.Fatalf("%d services were looked at, want all %d with ranges", rep.Services, ranged)
		}
	}
	close(stop)
	probes.Wait()
}

// TestSnapshotsStay checks that what an observer and a probe received is not modified later.
func TestSnapshotsStay(t *testing.T) {
	r := newGuardedRig(t)
	town(r.store)
	checked := func(port uint16) *Service {
		return service("checked", "10.96.0.9", "p:80/TCP").with(func(s *Service) { s.HealthCheckNodePort, s.ExternalLocal = port, true })
	}
	r.store.SetService(checked(32000))
	r.mustStep()
	type kept struct {
		noLocal, nodePorts, fill, checks string
	}
	before := r.loop.Status()
	checks := r.heard.checks[len(r.heard.checks)-1]
	text := func() kept {
		return kept{fmt.Sprint(before.NoLocalEndpoints), fmt.Sprint(before.NodePortAddrs), fmt.Sprint(before.Fill), fmt.Sprint(checks)}
	}
	want := text()
	own := addrs("127.0.0.1", "192.168.0.9")
	r.store.SetNodeAddrs(own)
	r.mustStep()
	own[1] = nodeAddrs[2] // the store must have its own copy
	r.store.SetSlice(slice("far-4", "far", "p:80/TCP", "10.0.0.9@me"))
	r.store.DeleteService(svcName("web"))
	r.store.SetService(checked(32001))
	r.clock.advance(grace)
	r.mustStep()
	if got := text(); got != want {
		t.Errorf("what was published became\n%+v, it was\n%+v", got, want)
	}
	if got := fmt.Sprint(r.loop.Status().NodePortAddrs); got != "[127.0.0.1 192.168.0.9]" {
		t.Errorf("the addresses are %s", got)
	}
}
