// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"shunt/lb"
)

// The invariants are those that the comments in lb/model.go promise for each type. They
// are written from these comments, not from the converter.

func checkAddrs(what string, list []netip.Addr) error {
	seen := make(map[netip.Addr]bool)
	for _, a := range list {
		switch {
		case !a.IsValid() || a.Is4In6() || a.Zone() != "":
			return fmt.Errorf("%s: %v is invalid, mapped or has a zone", what, a)
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast():
			return fmt.Errorf("%s: %v can't be programmed", what, a)
		case seen[a]:
			return fmt.Errorf("%s: %v is there twice", what, a)
		}
		seen[a] = true
	}
	return nil
}

func checkService(s *lb.Service) error {
	errs := []error{
		checkAddrs("ClusterIPs", s.ClusterIPs),
		checkAddrs("ExternalIPs", s.ExternalIPs),
		checkAddrs("LoadBalancerIPs", s.LoadBalancerIPs),
	}
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.Name.Namespace == "" || s.Name.Name == "" {
		fail("no name: %v", s.Name)
	}
	if len(s.ClusterIPs) > 2 || (len(s.ClusterIPs) == 2 && s.ClusterIPs[0].Is4() == s.ClusterIPs[1].Is4()) {
		fail("ClusterIPs: %v: more than one of a family", s.ClusterIPs)
	}
	ranges := make(map[netip.Prefix]bool)
	for _, r := range s.SourceRanges {
		if !r.IsValid() || r != r.Masked() || r.Addr().Is4In6() || ranges[r] {
			fail("SourceRanges: %v is invalid, not masked or there twice", r)
		}
		ranges[r] = true
	}
	if s.AffinityTimeout < 0 || s.AffinityTimeout > 24*time.Hour || s.AffinityTimeout%time.Second != 0 {
		fail("AffinityTimeout: %v", s.AffinityTimeout)
	}
	if s.NotServed && len(s.Ports)+len(s.ExternalIPs)+len(s.LoadBalancerIPs) > 0 {
		fail("NotServed, with ports or other addresses: %+v", s)
	}
	if s.HealthCheckNodePort != 0 && !s.ExternalLocal {
		fail("HealthCheckNodePort without ExternalLocal")
	}
	return errors.Join(append(errs, checkPorts(s.Ports))...)
}

func checkPorts(ports []lb.ServicePort) error {
	type number struct {
		proto lb.Protocol
		port  uint16
		node  bool
	}
	type name struct {
		proto lb.Protocol
		name  string
	}
	numbers, names := make(map[number]bool), make(map[name]bool)
	for _, p := range ports {
		n, k := number{p.Protocol, p.Port, false}, name{p.Protocol, p.Name}
		np := number{p.Protocol, p.NodePort, true}
		switch {
		case p.Protocol != lb.TCP && p.Protocol != lb.UDP:
			return fmt.Errorf("Ports: %+v: protocol", p)
		case p.Port == 0:
			return fmt.Errorf("Ports: %+v: port 0", p)
		case p.Name == "" && len(ports) > 1:
			return fmt.Errorf("Ports: %+v: one of several without a name", p)
		case numbers[n] || names[k] || (p.NodePort != 0 && numbers[np]):
			return fmt.Errorf("Ports: %+v: there twice", p)
		}
		numbers[n], numbers[np], names[k] = true, true, true
	}
	return nil
}

func checkSlice(s *lb.EndpointSlice) error {
	if s.Name.Namespace == "" || s.Name.Name == "" || s.Service.Name == "" || s.Service.Namespace != s.Name.Namespace {
		return fmt.Errorf("names: %v of %v", s.Name, s.Service)
	}
	type join struct {
		name  string
		proto lb.Protocol
	}
	joins := make(map[join]bool)
	for _, p := range s.Ports {
		j := join{p.Name, p.Protocol}
		if p.Port == 0 || (p.Protocol != lb.TCP && p.Protocol != lb.UDP) || joins[j] {
			return fmt.Errorf("Ports: %+v", p)
		}
		joins[j] = true
	}
	for i, e := range s.Endpoints {
		if err := checkAddrs("Endpoints", []netip.Addr{e.Addr}); err != nil {
			return err
		}
		if e.Addr.Is4() != s.Endpoints[0].Addr.Is4() {
			return fmt.Errorf("Endpoints[%d]: %v is of another family", i, e.Addr)
		}
		if h := e.Hints; h != nil && len(h.Nodes)+len(h.Zones) == 0 {
			return fmt.Errorf("Endpoints[%d]: empty hints", i)
		}
	}
	return nil
}

func checkNode(n *lb.Node) error { return checkAddrs("Addrs", n.Addrs) }
