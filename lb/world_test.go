// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// world makes random changes to a few services that share much: names, addresses, node ports,
// endpoints.
type world struct {
	c     chooser
	store *Store
	// created is when the newest service was created. ageless: the time is unknown, as in
	// manifests.
	created int
	ageless bool
}

var worldNames = []string{"a", "b", "c", "d"}

// change makes one random change.
func (w *world) change() string {
	c := w.c
	name := svcName(pick(c, worldNames))
	switch c(17) {
	case 0:
		w.store.DeleteService(name)
		return "delete service " + name.Name
	case 1, 2, 3:
		w.store.SetService(w.service(name))
		return "set service " + name.Name
	case 4, 5, 6:
		old := w.store.services[name]
		if old == nil {
			old = w.service(name)
		}
		return w.alter(old)
	case 7:
		sl := SliceName{"default", fmt.Sprint(c(6))}
		w.store.DeleteSlice(sl)
		return "delete slice " + sl.Name
	case 8:
		w.store.SetNode(&Node{Name: "me", Zone: pick(c, []string{"", "z1", "z2"})})
		return "node " + w.store.node.Zone
	case 9:
		w.store.SetNodeAddrs(slices.Clone(nodeAddrs[c(4):]))
		return "node addresses"
	case 16:
		all := prefixes("10.96.0.0/16", "fd96::/112", "10.97.0.0/24")
		w.store.SetServiceCIDRs(all[c(3):])
		return "service CIDRs"
	case 10: // a user replaces a service by another one
		w.store.DeleteService(name)
		other := svcName(pick(c, worldNames))
		w.store.SetService(w.service(other))
		return "delete service " + name.Name + ", set " + other.Name
	}
	s := w.slice()
	w.store.SetSlice(s)
	return fmt.Sprintf("set slice %s of %s", s.Name.Name, s.Service.Name)
}

func (w *world) service(name ServiceName) *Service {
	c := w.c
	s := &Service{Name: name}
	if old := w.store.services[name]; old != nil && !c.oneIn(4) {
		s.Created = old.Created // an update; otherwise it was created anew, later
	} else if !w.ageless {
		w.created += c(2) // times of the API have whole seconds
		s.Created = time.Unix(int64(w.created), 0)
	}
	if !c.oneIn(4) {
		s.ClusterIPs = append(s.ClusterIPs, pick(c, addrs("10.96.0.1", "10.96.0.2", "10.96.0.3")))
	}
	if c.oneIn(2) {
		s.ClusterIPs = append(s.ClusterIPs, pick(c, addrs("fd96::1", "fd96::2")))
	}
	if c.oneIn(10) {
		s.NotServed = true
		return s
	}
	// Some are the cluster IP of another service, or an address of the node.
	for _, a := range addrs("1.1.1.1", "1.1.1.2", "2001:db8::1", "10.96.0.1", "192.168.0.1") {
		if c.oneIn(4) {
			s.ExternalIPs = append(s.ExternalIPs, a)
		}
		if c.oneIn(5) {
			s.LoadBalancerIPs = append(s.LoadBalancerIPs, a)
		}
	}
	s.SourceRanges = w.ranges()
	s.InternalLocal, s.ExternalLocal = c.oneIn(4), c.oneIn(2)
	if c.oneIn(3) {
		s.AffinityTimeout = time.Duration(c(3)) * time.Minute
	}
	if c.oneIn(4) {
		s.HealthCheckNodePort = uint16(32000 + c(2))
	}
	s.Ports = w.ports()
	return s
}

func (w *world) ranges() []netip.Prefix {
	var list []netip.Prefix
	for _, p := range []string{"203.0.113.0/24", "203.0.0.0/8", "192.168.0.0/24", "2001:db8:1::/48", "fd00:1::/64"} {
		if w.c.oneIn(4) {
			list = append(list, netip.MustParsePrefix(p).Masked())
		}
	}
	return list
}

// ports returns ports that the API accepts: no two with the same name, or with the same protocol
// and number.
func (w *world) ports() []ServicePort {
	c := w.c
	var ports []ServicePort
	for range 1 + c(3) {
		p := ServicePort{Name: pick(c, []string{"p", "q", "r"}), Protocol: pick(c, []Protocol{TCP, UDP, TCP, SCTP}), Port: pick(c, []uint16{80, 81, 80, 81, 30000})}
		if c.oneIn(2) {
			p.NodePort = uint16(30000 + c(3))
		}
		if !slices.ContainsFunc(ports, func(o ServicePort) bool {
			return o.Name == p.Name || o.Protocol == p.Protocol && (o.Port == p.Port || o.NodePort == p.NodePort && p.NodePort != 0)
		}) {
			ports = append(ports, p)
		}
	}
	return ports
}

// alter changes one property of a service.
func (w *world) alter(old *Service) string {
	c := w.c
	what := ""
	w.store.SetService(old.with(func(s *Service) {
		switch c(8) {
		case 0:
			what, s.ExternalLocal = "external policy", !s.ExternalLocal
		case 1:
			what, s.InternalLocal = "internal policy", !s.InternalLocal
		case 2:
			what, s.AffinityTimeout = "affinity", time.Duration(c(3))*time.Minute
		case 3:
			what = "names of ports"
			by := 1 + c(2)
			for i := range s.Ports {
				s.Ports[i].Name = "pqrpq"[int(s.Ports[i].Name[0]-'p')+by:][:1]
			}
		case 4:
			what, s.Ports = "ports", w.ports()
		case 5:
			what, s.ExternalIPs = "external IPs", addrs("1.1.1.1")[:c(2)]
		case 6:
			what, s.ClusterIPs = "families", addrs("10.96.0.1", "fd96::1")[c(2):]
		case 7:
			what, s.SourceRanges = "source ranges", w.ranges()
		}
	}))
	return fmt.Sprintf("service %s: other %s", old.Name.Name, what)
}

func (w *world) slice() *EndpointSlice {
	c := w.c
	s := &EndpointSlice{
		Name:    SliceName{"default", fmt.Sprint(c(6))},
		Service: svcName(pick(c, worldNames)),
	}
	if c.oneIn(2) {
		s.LastChange = w.store.now()
	}
	for _, name := range []string{"p", "q", "r"} {
		for _, protocol := range []Protocol{TCP, UDP} {
			if !c.oneIn(5) {
				s.Ports = append(s.Ports, EndpointPort{name, protocol, uint16(8080 + c(2))})
			}
		}
	}
	hinted, down := c(3), 1+c(6)
	for range c(6) {
		s.Endpoints = append(s.Endpoints, randomEndpoint(c, hinted, down))
	}
	return s
}
