// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"testing"
	"time"
)

// TestGoneWithoutFrontends deletes a service that has nothing in the maps, in one reconcile with a
// change of the node's zone, for which every service is looked at. Its claims, problems and health
// check must be removed too.
func TestGoneWithoutFrontends(t *testing.T) {
	external := func(age int64, also ...func(*Service)) func(*Service) {
		return func(s *Service) {
			s.Created = time.Unix(age, 0)
			s.ExternalIPs = addrs("1.1.1.1")
			for _, change := range also {
				change(s)
			}
		}
	}
	r := newGuardedRig(t)
	r.store.SetNodeAddrs(nodeAddrs)
	// Service has claims everything that lost asks for, so that lost has nothing.
	has := service("has", "10.96.0.1", "p:80/TCP").with(external(1))
	lost := service("lost", "10.96.0.1", "p:80/TCP").with(external(2, func(s *Service) {
		s.ExternalLocal, s.HealthCheckNodePort = true, 32000
	}))
	third := service("third", "10.96.0.3", "p:80/TCP").with(external(3))
	r.store.SetNode(&Node{Name: "me", Zone: "z1"})
	for _, s := range []*Service{has, lost, third} {
		r.store.SetService(s)
	}
	r.mustStep()
	if len(r.loop.r.ports[lost.Name]) != 0 {
		t.Fatalf("service lost has something in the maps: this test shows nothing")
	}

	r.store.DeleteService(lost.Name)
	r.store.SetNode(&Node{Name: "me", Zone: "z2"})
	r.mustStep()
	if checks := r.heard.checks[len(r.heard.checks)-1]; len(checks) != 0 {
		t.Errorf("health checks are %v, want none: the service is gone", checks)
	}
	for _, p := range r.loop.Status().Problems.List {
		if p.Service == lost.Name {
			t.Errorf("a service that is gone has the problem %v", p)
		}
	}

	r.store.DeleteService(has.Name)
	r.mustStep()
	if got, want := r.owner("1.1.1.1:80"), "third ExternalIP"; got != want {
		t.Errorf("1.1.1.1:80 is %s, want %s: who had it, and who came next, are gone", got, want)
	}
}
