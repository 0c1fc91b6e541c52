// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"slices"
	"time"

	"shunt/maps"
)

// portKey identifies a service port, in one family. It has a service id. Protocol 0 is a cluster IP
// as a whole: it covers the ports that the service does not define, and has no id.
type portKey struct {
	service  ServiceName
	port     string
	protocol Protocol
	family   Family
}

func (k portKey) name() maps.Name {
	return maps.Name{Namespace: k.service.Namespace, Name: k.service.Name, Port: k.port,
		Protocol: uint8(k.protocol), Family: uint8(k.family)}
}

func keyOf(n maps.Name) portKey {
	return portKey{service: ServiceName{n.Namespace, n.Name}, port: n.Port,
		protocol: Protocol(n.Protocol), family: Family(n.Family)}
}

// portPlan is what the maps must hold for a portKey, as values without ids.
type portPlan struct {
	key       portKey
	affinity  uint32 // seconds
	frontends []frontendPlan
	// refused are addresses that the service asks for and may not have.
	refused []refusal
	// cut counts the frontends beyond the limit for one service.
	cut int
	// backends are the endpoints that are ready or serving, in a set or not, sorted by address: a
	// flow keeps an endpoint that left the set as long as it serves. For TCP they include unready
	// endpoints, since a connection lasts until its endpoint is gone. An unready endpoint gets no
	// new backend, but keeps the one it has (unready.go).
	backends []backendPlan
	// sources are the source ranges of the load-balancer IPs, masked and sorted; empty: all clients
	// are allowed.
	sources []netip.Prefix
	// noLocal: the service port counts in Status.NoLocalEndpoints.
	noLocalInternal, noLocalExternal bool
}

type frontendPlan struct {
	key  maps.FrontendKey
	kind maps.FrontendKind
	// Whether clients inside, and outside, get the local set; otherwise they get the cluster set.
	insideLocal, outsideLocal bool
	// ranged: from outside, only clients in the port's source ranges are allowed.
	ranged bool
}

// refusal is an address that is never programmed, whatever other services ask for.
type refusal struct {
	key  maps.FrontendKey
	kind maps.FrontendKind
	why  string
}

type backendPlan struct {
	addr  netip.AddrPort
	flags uint8 // maps.ClusterSet etc.
}

// inSet returns the indexes of the backends that have a flag.
func (p *portPlan) inSet(flag uint8) []int {
	var in []int
	for i, b := range p.backends {
		if b.flags&flag != 0 {
			in = append(in, i)
		}
	}
	return in
}

// planService returns the plans of all ports of a service. For a service that another proxy serves
// they are only claims: no other service gets its cluster IPs as external addresses.
func planService(svc *Service, slicesOf []*EndpointSlice, at place) []portPlan {
	ports := newPortIndex(slicesOf, len(svc.Ports))
	return planPorts(svc, &ports, at)
}

// planPorts does what planService does, with an index of the slices' ports.
func planPorts(svc *Service, ports *portIndex, at place) []portPlan {
	var plans []portPlan
	for _, family := range []Family{IPv4, IPv6} {
		clusterIP, has := ofFamily(svc.ClusterIPs, family)
		if !has {
			continue
		}
		for _, p := range svc.Ports {
			if p.Protocol != TCP && p.Protocol != UDP {
				continue
			}
			plans = append(plans, planPort(svc, p, family, ports, at))
		}
		if at.owns(clusterIP) {
			continue
		}
		plans = append(plans, portPlan{
			key: portKey{service: svc.Name, family: family},
			frontends: []frontendPlan{{
				key: maps.NewFrontendKey(clusterIP, 0, 0), kind: maps.UndefinedPort}},
		})
	}
	cut(plans, at.maxFrontends)
	return plans
}

// cut limits the frontends of a service to most, 0 for no limit. It keeps the first by rank, and
// within a rank by the order of ports and addresses in the object. One object can ask for a hundred
// thousand frontends: the product of its ports and addresses.
func cut(plans []portPlan, most int) {
	all := 0
	for i := range plans {
		all += len(plans[i].frontends)
	}
	if most == 0 || all <= most {
		return
	}
	var kept [ranks]int // how many frontends of each rank stay
	for i := range plans {
		for _, f := range plans[i].frontends {
			kept[rankOf(f.kind)]++
		}
	}
	for r := range kept {
		kept[r] = min(kept[r], most)
		most -= kept[r]
	}
	for i := range plans {
		p := &plans[i]
		p.frontends = slices.DeleteFunc(p.frontends, func(f frontendPlan) bool {
			r := rankOf(f.kind)
			kept[r]--
			if kept[r] < 0 {
				p.cut++
			}
			return kept[r] < 0
		})
	}
}

func ofFamily(addrs []netip.Addr, f Family) (netip.Addr, bool) {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return FamilyOf(a) == f })
	if i < 0 {
		return netip.Addr{}, false
	}
	return addrs[i], true
}

func planPort(svc *Service, p ServicePort, family Family, ports *portIndex, at place) portPlan {
	eps := candidates(ports, p.Name, p.Protocol, family, at)
	choose(eps, at)
	plan := portPlan{
		key:      portKey{service: svc.Name, port: p.Name, protocol: p.Protocol, family: family},
		affinity: uint32(svc.AffinityTimeout / time.Second),
	}
	plan.frontends, plan.refused = planFrontends(svc, p, family, at)
	plan.backends = make([]backendPlan, 0, len(eps))
	var cluster, local bool
	for i := range eps {
		c := &eps[i]
		cluster, local = cluster || c.inCluster, local || c.inLocal
		if c.ready || c.serving || p.Protocol == TCP {
			plan.backends = append(plan.backends, backendPlan{addr: c.addr, flags: c.flags()})
		}
	}
	plan.sources = planSourceRanges(svc, plan.frontends, family, at)
	plan.noLocalInternal = svc.InternalLocal && cluster && !local
	plan.noLocalExternal = svc.ExternalLocal && cluster && !local &&
		(p.NodePort != 0 || len(plan.frontends) > 1)
	return plan
}

func (c *candidate) flags() uint8 {
	var flags uint8
	for _, f := range []struct {
		is   bool
		flag uint8
	}{{c.inCluster, maps.ClusterSet}, {c.inLocal, maps.LocalSet}, {c.local, maps.OnNode}, {c.terminating, maps.Terminating},
		{!c.ready && !c.serving, maps.Unready}} {
		if f.is {
			flags |= f.flag
		}
	}
	return flags
}

// planFrontends returns the frontends of a service port, by rank, and those that it may not have.
// Clients inside get the cluster set of an external frontend even if its policy is Local: for them
// it behaves like the cluster IP.
func planFrontends(svc *Service, p ServicePort, family Family, at place) (plan []frontendPlan, refused []refusal) {
	add := func(kind maps.FrontendKind, a netip.Addr, port uint16) {
		f := frontendPlan{key: maps.NewFrontendKey(a, port, uint8(p.Protocol)), kind: kind,
			outsideLocal: svc.ExternalLocal, ranged: kind == maps.LoadBalancerIP && isRestricted(svc, family)}
		if kind == maps.ClusterIP {
			f.insideLocal, f.outsideLocal = svc.InternalLocal, svc.InternalLocal
		}
		if FamilyOf(a) != family {
			return
		}
		if why := at.refuses(kind, f.key); why != "" {
			refused = append(refused, refusal{f.key, kind, why})
			return
		}
		plan = append(plan, f)
	}
	for _, a := range svc.ClusterIPs {
		if !at.owns(a) {
			add(maps.ClusterIP, a, p.Port)
		}
	}
	if p.NodePort != 0 {
		any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
		add(maps.NodePort, any4, p.NodePort)
		add(maps.NodePort, any6, p.NodePort)
	}
	if len(svc.LoadBalancerIPs)+len(svc.ExternalIPs) == 0 {
		return plan, refused
	}
	// An address in several roles gets the best one. A map, since there may be thousands of
	// addresses.
	taken := map[netip.Addr]bool{}
	for _, a := range svc.ClusterIPs {
		taken[a] = true
	}
	for _, a := range svc.LoadBalancerIPs {
		if !taken[a] {
			taken[a] = true
			add(maps.LoadBalancerIP, a, p.Port)
		}
	}
	for _, a := range svc.ExternalIPs {
		if !taken[a] {
			add(maps.ExternalIP, a, p.Port)
		}
	}
	return plan, refused
}

// refuses returns why a service may not have an address, "" where it may. The API server allocates
// the addresses of service CIDRs as cluster IPs: an external IP there may be another service's, now
// or later, on all nodes.
func (at place) refuses(kind maps.FrontendKind, k maps.FrontendKey) string {
	if rankOf(kind) >= rankLoadBalancerIP {
		for _, p := range at.cidrs {
			if p.Contains(k.AddrPort().Addr()) {
				return "it is in the service CIDR " + p.String()
			}
		}
	}
	return at.reserved.refuses(kind, k)
}
