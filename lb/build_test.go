// SPDX-License-Identifier: Apache-2.0

package lb

// Helpers that make an object from one line of text.

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// svcName parses "namespace/name"; without a slash the namespace is "default".
func svcName(s string) ServiceName {
	ns, name, ok := strings.Cut(s, "/")
	if !ok {
		return ServiceName{"default", s}
	}
	return ServiceName{ns, name}
}

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, 0, len(list))
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// service returns a Service with cluster IPs, and ports such as "name:80/TCP:30080".
func service(name, clusterIPs string, ports ...string) *Service {
	s := &Service{Name: svcName(name), ClusterIPs: addrs(strings.Fields(clusterIPs)...)}
	for _, p := range ports {
		s.Ports = append(s.Ports, parseServicePort(p))
	}
	return s
}

func parseServicePort(s string) ServicePort {
	var p ServicePort
	name, rest, _ := strings.Cut(s, ":")
	number, rest, _ := strings.Cut(rest, "/")
	protocol, node, has := strings.Cut(rest, ":")
	p.Name, p.Port, p.Protocol = name, number16(number), protocolOf(protocol)
	if has {
		p.NodePort = number16(node)
	}
	return p
}

func protocolOf(s string) Protocol {
	p, ok := map[string]Protocol{"TCP": TCP, "UDP": UDP, "SCTP": SCTP}[s]
	if !ok {
		panic("no protocol: " + s)
	}
	return p
}

func number16(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		panic(err)
	}
	return uint16(n)
}

// with returns a changed copy of a service.
func (s *Service) with(change func(*Service)) *Service {
	c := *s
	c.Ports = slices.Clone(s.Ports)
	change(&c)
	return &c
}

// slice returns an EndpointSlice with ports such as "http:8080/TCP", separated by spaces, and
// endpoints that endpoint parses.
func slice(name, service, ports string, endpoints ...string) *EndpointSlice {
	sn := svcName(service)
	s := &EndpointSlice{Name: SliceName{sn.Namespace, name}, Service: sn}
	for _, p := range strings.Fields(ports) {
		sp := parseServicePort(p)
		s.Ports = append(s.Ports, EndpointPort{sp.Name, sp.Protocol, sp.Port})
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, endpoint(e))
	}
	return s
}

// endpoint parses "10.0.0.1@node conditions for=node,node zone=zone". The conditions are words of
// ready, serving, terminating. Without one the endpoint is ready and serving, the defaults of the
// API; "-" stands for none of the conditions.
func endpoint(s string) Endpoint {
	words := strings.Fields(s)
	a, node, _ := strings.Cut(words[0], "@")
	e := Endpoint{Addr: netip.MustParseAddr(a), Node: node}
	said := false
	hints := func() *Hints {
		if e.Hints == nil {
			e.Hints = &Hints{}
		}
		return e.Hints
	}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "ready":
			e.Ready, said = true, true
		case "serving":
			e.Serving, said = true, true
		case "terminating":
			e.Terminating, said = true, true
		case "-":
			said = true
		case "for":
			hints().Nodes = strings.Split(value, ",")
		case "zone":
			hints().Zones = strings.Split(value, ",")
		case "nohints":
			hints()
		default:
			panic("endpoint: what is " + w)
		}
	}
	if !said {
		e.Ready, e.Serving = true, true
	}
	return e
}

// testClock is a clock that tests advance.
type testClock struct{ t time.Time }

func newTestClock() *testClock {
	return &testClock{time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func (c *testClock) now() time.Time          { return c.t }
func (c *testClock) advance(d time.Duration) { c.t = c.t.Add(d) }

// chooser returns a number from 0 to n-1, from a seeded source or from the bytes of a fuzzer.
type chooser func(n int) int

func (c chooser) oneIn(n int) bool { return c(n) == 0 }

func pick[T any](c chooser, from []T) T { return from[c(len(from))] }

// fromBytes chooses by a fuzzer's bytes, and 0 after they are used up.
func fromBytes(data []byte) chooser {
	return func(n int) int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b) % n
	}
}
