// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"shunt/maps"
)

// TestRoomIsGivenAgainForTheSameSum moves the need of a service from one port to the other. All
// services ask for as much as before, but other frontends fit.
func TestRoomIsGivenAgainForTheSameSum(t *testing.T) {
	clock := newTestClock()
	sizes := roomy
	sizes.Backends = 4 // room for 3
	r := newRig(t, maps.NewFake(sizes), clock)
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP", "q:81/TCP"))
	r.store.SetSlice(slice("p", "a", "p:8080/TCP", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
	r.store.SetSlice(slice("q", "a", "q:8081/TCP", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))
	r.step()
	if p, q := r.leads("10.96.0.1:80"), r.leads("10.96.0.1:81"); p == "" || q != "no frontend" {
		t.Fatalf("port p leads to %q, q to %q", p, q)
	}
	r.store.SetSlice(slice("p", "a", "p:8080/TCP", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))
	r.store.SetSlice(slice("q", "a", "q:8081/TCP", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
	clock.advance(grace)
	for range 3 {
		r.step()
		clock.advance(grace)
	}
	if p, q := r.leads("10.96.0.1:80"), r.leads("10.96.0.1:81"); p != "no frontend" || q != "10.0.0.1:8081,10.0.0.2:8081,10.0.0.3:8081" {
		t.Errorf("port p leads to %q, q to %q", p, q)
	}
	r.sameAs(r.fresh(), "with the need moved")
}

// TestThousandsShortCostLittle checks that the error for services without room names the first ones
// and counts the others, and costs no more where there are thousands.
func TestThousandsShortCostLittle(t *testing.T) {
	sizes := roomy
	sizes.Services = 8
	r := newRig(t, maps.NewFake(sizes), newTestClock())
	const services = 2000
	for i := range services {
		r.store.SetService(service(fmt.Sprintf("s%04d", i), fmt.Sprintf("10.96.%d.%d", i/256, i%256), "p:80/TCP").with(func(s *Service) {
			s.Created = time.Unix(int64(services-i), 0) // services with the last names come first
		}))
	}
	r.step()
	if n := len(r.loop.r.ledger.short); n != services-8 {
		t.Fatalf("%d services lack room, want %d", n, services-8)
	}
	lines := strings.Split(r.loop.Status().Err.Error(), "\n")
	if len(lines) != 4 || lines[3] != fmt.Sprintf("and %d more", services-8-3) {
		t.Fatalf("it is said %q", lines)
	}
	for i, name := range []string{"s0000", "s0001", "s0002"} {
		if !strings.Contains(lines[i], "default/"+name) {
			t.Errorf("line %d is %q, want one about %s", i, lines[i], name)
		}
	}
	allocs := testing.AllocsPerRun(3, func() {
		r.loop.r.ledger.err = nil
		_ = r.loop.r.shortErr()
	})
	if allocs > 200 {
		t.Errorf("to say it takes %v allocations", allocs)
	}
}

// TestManyFrontendsOfOnePort changes the endpoints of a service with thousands of external IPs.
// Other services wait meanwhile, so each frontend must cost as little as in a small service.
func TestManyFrontendsOfOnePort(t *testing.T) {
	took := func(ips int) time.Duration {
		r := newRig(t, maps.NewFake(maps.DefaultSizes()), newTestClock())
		r.store.SetService(flood(ips, 1))
		r.mustStep()
		best := time.Hour
		for i := range 5 {
			r.store.SetSlice(slice("x", "a-flood", "p0:8080/TCP", fmt.Sprint("10.0.0.", i)))
			r.clock.advance(grace)
			start := time.Now()
			r.mustStep()
			best = min(best, time.Since(start))
		}
		if to := r.leads("198.18.0.3:1000"); to != "10.0.0.4:8080" {
			t.Errorf("a frontend leads to %q", to)
		}
		return best
	}
	// 16 times as many frontends; they took 250 times as long once. Other work on the machine may
	// spoil a measurement.
	const few, many = 500, 8000
	for range 5 {
		a, b := took(few), took(many)
		if t.Failed() || b <= 60*a {
			return
		}
		t.Logf("a change takes %v with %d frontends, and %v with %d", a, few, b, many)
	}
	t.Error("the time of a change grows with the square of the frontends")
}
