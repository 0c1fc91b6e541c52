package lb

import (
	"net/netip"
	"testing"

	"shunt/maps"
)

// A port that gets another name keeps its id and its records, also where that happens while
// no daemon runs. One that has another address is another port.
func TestRenamedPort(t *testing.T) {
	r := newGuardedRig(t)
	type known struct {
		service, backend uint32
		name             string
	}
	find := func() (k known) {
		t.Helper()
		d := r.dump()
		for id, be := range d.Backends {
			if be.Protocol == 17 {
				k = known{be.ServiceId, id, d.Names[be.ServiceId].String()}
			}
		}
		if k.backend == 0 {
			t.Fatal("no endpoint of UDP has a record")
		}
		return k
	}
	set := func(port, other string) {
		r.clock.advance(grace)
		r.store.SetService(service("a", "10.96.0.1", port+":53/UDP", other+":80/TCP"))
		r.store.SetSlice(slice("a", "a", port+":5353/UDP "+other+":8080/TCP", "10.0.0.1"))
	}
	set("dns", "web")
	r.mustStep()
	before := find()
	r.heard.stale = nil
	set("dns-udp", "web")
	r.mustStep()
	if got := find(); got.service != before.service || got.backend != before.backend || got.name != "default/a:dns-udp/UDP" {
		t.Errorf("after the name has changed: %+v, before it was %+v", got, before)
	}
	set("x", "y") // both at once, and without a daemon
	r.start()
	r.mustStep()
	if got := find(); got.service != before.service || got.backend != before.backend || got.name != "default/a:x/UDP" {
		t.Errorf("after both names have changed: %+v, before it was %+v", got, before)
	}
	if len(r.heard.stale) > 0 {
		t.Errorf("sockets are said to be left behind: %+v", r.heard.stale)
	}
	r.sameAs(r.fresh(), "after all")
	r.clock.advance(grace)
	r.store.SetService(service("a", "10.96.0.1", "z:54/UDP"))
	r.mustStep()
	if _, there := r.dump().Frontends[maps.NewFrontendKey(netip.MustParseAddr("10.96.0.1"), 53, 17)]; there {
		t.Error("the old port is still there")
	}
	for id, n := range r.dump().Names {
		if n.Port == "z" && id == before.service {
			t.Error("a port of another number has the old one's id")
		}
	}
}
