package lb

import (
	"testing"

	"shunt/maps"
)

// TestRoomIsGivenAgainForTheSameSum has the need of a service move from one port to
// another: all services together ask for as much as before, but other things fit.
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
