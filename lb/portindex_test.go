// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"testing"
)

// manyNamed returns a Service with so many ports and its slices, which list all of them.
func manyNamed(ports int) (*Service, []*EndpointSlice) {
	svc := service("a", "10.96.0.1 fd96::1", "p:1/TCP")
	svc.Ports = nil
	sls := []*EndpointSlice{slice("a-1", "a", "", "10.0.0.1@me"), slice("a-2", "a", "", "10.0.0.2@me"), slice("a-3", "a", "", "fd00::1@me")}
	for i := range ports {
		p := ServicePort{Name: fmt.Sprintf("p-%d", i), Protocol: []Protocol{TCP, UDP}[i%2], Port: uint16(i + 1)}
		svc.Ports = append(svc.Ports, p)
		for _, s := range sls {
			s.Ports = append(s.Ports, EndpointPort{p.Name, p.Protocol, uint16(i + 1)})
		}
	}
	return svc, sls
}

// TestPortsCostTheirNumber checks that planning a Service, and counting its endpoints for a health
// check, compare ports as often as the Service has ports, and find the same endpoints with the
// index as without.
func TestPortsCostTheirNumber(t *testing.T) {
	for _, ports := range []int{1, fewPorts, fewPorts + 1, 500, 4000} {
		svc, sls := manyNamed(ports)
		x := newPortIndex(sls, len(svc.Ports))
		plans := planPorts(svc, &x, here)
		for _, family := range []Family{IPv4, IPv6} {
			if got, want := localReady(svc, &x, family, here), map[Family]int{IPv4: 2, IPv6: 1}[family]; got != want {
				t.Errorf("%d ports: %d endpoints of %s are ready here, want %d", ports, got, family, want)
			}
		}
		// Each family is planned and counted: four lookups for each port in three slices.
		if most := 4 * len(sls) * ports * 8; x.compared > most {
			t.Errorf("%d ports: %d comparisons, want at most %d", ports, x.compared, most)
		}
		for _, p := range plans {
			want := map[Family]int{IPv4: 2, IPv6: 1}[p.key.family]
			if p.key.protocol == 0 {
				want = 0
			}
			if len(p.backends) != want {
				t.Fatalf("%d ports: port %q of %s has backends %v, want %d", ports, p.key.port, p.key.family, p.backends, want)
			}
		}
	}
}

// TestPortIndexFindsAll checks that the index finds all ports of a name and protocol in the order
// of the slices, as a walk does.
func TestPortIndexFindsAll(t *testing.T) {
	sls := []*EndpointSlice{
		slice("a", "a", "p:1/TCP q:2/TCP p:3/UDP p:4/TCP"), slice("b", "a", "p:5/TCP"), slice("c", "a", "r:6/TCP p:1/TCP"),
	}
	for _, c := range []struct {
		name     string
		protocol Protocol
		want     string
	}{
		{"p", TCP, " 0:1 0:4 1:5 2:1"}, {"p", UDP, " 0:3"}, {"q", TCP, " 0:2"}, {"r", TCP, " 2:6"}, {"r", UDP, ""}, {"s", TCP, ""},
	} {
		for _, lookups := range []int{1, fewPorts + 1} {
			x, got := newPortIndex(sls, lookups), ""
			x.each(c.name, c.protocol, func(slice int, port uint16) { got += fmt.Sprintf(" %d:%d", slice, port) })
			if got != c.want {
				t.Errorf("%s of %v for %d lookups:%s, want%s", c.name, c.protocol, lookups, got, c.want)
			}
		}
	}
}

// TestListedNamesCostTheirNumber checks that an endpoint under many port names takes no more
// memory than one under two: a list of its names would be searched for each name.
func TestListedNamesCostTheirNumber(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.1:80")
	allocs := func(names int) float64 {
		s := slice("a", "a", "", "10.0.0.1")
		for i := range names {
			s.Ports = append(s.Ports, EndpointPort{fmt.Sprintf("p-%d", i), TCP, 80})
		}
		return testing.AllocsPerRun(5, func() {
			listed := servingByName{slices: []*EndpointSlice{s}}
			if other := listed.underOther(at, TCP, "p-0"); other != (names > 1) {
				t.Errorf("%d names: another one: %t", names, other)
			}
			if !listed.underOther(at, TCP, "q") || listed.underOther(at, UDP, "q") {
				t.Errorf("%d names: it is not under another name than q for TCP alone", names)
			}
		})
	}
	if two, many := allocs(2), allocs(4096); many != two {
		t.Errorf("%v allocations for 4096 names, %v for two", many, two)
	}
	if one := allocs(1); one == 0 {
		t.Error("nothing was looked up")
	}
}
