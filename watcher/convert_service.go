// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"net/netip"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"shunt/lb"
)

// The bounds and the default of sessionAffinityConfig.clientIP.timeoutSeconds.
const (
	maxAffinitySeconds     = 86400
	defaultAffinitySeconds = v1.DefaultClientIPServiceAffinitySeconds
)

// Service converts a Service. It returns nil for a Service that is headless or has no
// cluster IP (without a warning), and for a Service without a valid name. Of a Service that
// shunt does not serve (with the label of another proxy, or of type ExternalName) it converts
// only the cluster IPs.
func (c *Converter) Service(s *v1.Service) (*lb.Service, []Warning) {
	if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone {
		return nil, nil
	}
	name := lb.ServiceName{Namespace: s.Namespace, Name: s.Name}
	p := &warnings{of: Warning{Kind: kindService, Namespace: s.Namespace, Name: s.Name, Service: name}}
	if !p.named() {
		return nil, p.list
	}
	name.Namespace = c.shared.string(name.Namespace)
	if ofAnotherProxy(s.Labels) || s.Spec.Type == v1.ServiceTypeExternalName {
		out := &lb.Service{Name: name, ClusterIPs: p.clusterIPs(&s.Spec), NotServed: true}
		return out, nil // no warnings: shunt does not serve it
	}
	out := &lb.Service{
		Name:            name,
		Created:         s.CreationTimestamp.UTC(),
		ClusterIPs:      p.clusterIPs(&s.Spec),
		AffinityTimeout: p.affinity(&s.Spec),
		Ports:           c.servicePorts(p, &s.Spec),
	}
	families := families(&s.Spec, out.ClusterIPs)
	for i, ip := range s.Spec.ExternalIPs {
		out.ExternalIPs = p.frontend(out.ExternalIPs, path{"spec.externalIPs", i, ""}, ip, asExternalIP, families)
	}
	for i := range s.Status.LoadBalancer.Ingress {
		out.LoadBalancerIPs = p.ingress(out.LoadBalancerIPs, i, &s.Status.LoadBalancer.Ingress[i], families)
	}
	p.sourceRanges(out, s.Spec.LoadBalancerSourceRanges)
	p.policies(out, &s.Spec)
	return out, p.list
}

// clusterIPs returns at most one cluster IP of each family. An address is ignored if
// ipFamilies has another family at its index.
func (p *warnings) clusterIPs(spec *v1.ServiceSpec) []netip.Addr {
	list := spec.ClusterIPs
	if len(list) == 0 {
		list = []string{spec.ClusterIP}
	} else if list[0] != spec.ClusterIP {
		p.add("spec.clusterIP", "%s differs from spec.clusterIPs[0] (%s), which is used", show(spec.ClusterIP), show(list[0]))
	}
	for i, f := range spec.IPFamilies {
		if _, ok := family(f); !ok {
			p.add(path{"spec.ipFamilies", i, ""}.String(), "%s is not IPv4 or IPv6: ignored", show(string(f)))
		}
	}
	var out []netip.Addr
	for i, s := range list {
		at := path{"spec.clusterIPs", i, ""}
		if len(spec.ClusterIPs) == 0 {
			at = path{"spec.clusterIP", noIndex, ""}
		}
		a, ok := p.readAddr(at, s, asFrontend)
		if !ok || slices.Contains(out, a) {
			continue
		}
		has := lb.FamilyOf(a)
		if i < len(spec.IPFamilies) {
			if f, ok := family(spec.IPFamilies[i]); ok && f != has {
				p.event(EventIncorrectIPVersion, at.String(), "%s is %s, but spec.ipFamilies[%d] is %s: ignored", show(s), has, i, f)
				continue
			}
		}
		if slices.ContainsFunc(out, func(b netip.Addr) bool { return lb.FamilyOf(b) == has }) {
			p.event(EventIncorrectIPVersion, at.String(), "%s is a second %s address: ignored", show(s), has)
			continue
		}
		out = append(out, a)
	}
	return out
}

// families returns the families of a service: those of ipFamilies or, if ipFamilies is empty
// (in an object to which no API server has applied defaults), those of its cluster IPs.
func families(spec *v1.ServiceSpec, clusterIPs []netip.Addr) []lb.Family {
	var out []lb.Family
	for _, s := range spec.IPFamilies {
		if f, ok := family(s); ok {
			out = append(out, f)
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, a := range clusterIPs {
		out = append(out, lb.FamilyOf(a))
	}
	return out
}

// frontend appends s to the list if s is a valid address, not in the list yet, and of a
// family of the service.
func (p *warnings) frontend(to []netip.Addr, at path, s string, u use, families []lb.Family) []netip.Addr {
	a, ok := p.readAddr(at, s, u)
	if !ok || slices.Contains(to, a) {
		return to
	}
	if f := lb.FamilyOf(a); !slices.Contains(families, f) {
		p.add(at.String(), "%s is %s, which the service does not have: ignored", show(s), f)
		if u == asExternalIP { // a user's mistake; clouds often write ingress IPs of both families
			p.list[len(p.list)-1].Event = EventIncorrectIPVersion
		}
		return to
	}
	return append(to, a)
}

// ingress appends the IP of one entry of status.loadBalancer.ingress. With ipMode VIP (the
// default) packets arrive at the node with that IP as their destination (KEP-1860). With
// ipMode Proxy they do not: the IP is left out, so that clients on this node reach the load
// balancer.
func (p *warnings) ingress(to []netip.Addr, i int, in *v1.LoadBalancerIngress, families []lb.Family) []netip.Addr {
	const field = "status.loadBalancer.ingress"
	if in.IP == "" {
		return to // a host name: nothing to capture
	}
	if mode := in.IPMode; mode != nil && *mode != v1.LoadBalancerIPModeVIP {
		if *mode != v1.LoadBalancerIPModeProxy {
			p.add(path{field, i, "ipMode"}.String(), "%s is not VIP or Proxy: ingress ignored", show(string(*mode)))
		}
		return to
	}
	return p.frontend(to, path{field, i, "ip"}, in.IP, asFrontend, families)
}

// affinity returns the timeout of session affinity, 0 for no affinity.
func (p *warnings) affinity(spec *v1.ServiceSpec) time.Duration {
	switch spec.SessionAffinity {
	case v1.ServiceAffinityNone, "":
		return 0
	case v1.ServiceAffinityClientIP:
	default:
		p.add("spec.sessionAffinity", "%s is not None or ClientIP: taken as None", show(string(spec.SessionAffinity)))
		return 0
	}
	seconds := int32(defaultAffinitySeconds)
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	if seconds < 1 || seconds > maxAffinitySeconds {
		p.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d is not within 1–%d: %d is used",
			seconds, maxAffinitySeconds, defaultAffinitySeconds)
		seconds = defaultAffinitySeconds
	}
	return time.Duration(seconds) * time.Second
}

// policies sets the traffic policies, and HealthCheckNodePort, which depends on them.
func (p *warnings) policies(out *lb.Service, spec *v1.ServiceSpec) {
	if t := spec.InternalTrafficPolicy; t != nil {
		out.InternalLocal = p.local("spec.internalTrafficPolicy", string(*t))
	}
	out.ExternalLocal = p.local("spec.externalTrafficPolicy", string(spec.ExternalTrafficPolicy))
	n := spec.HealthCheckNodePort
	if n == 0 || spec.Type != v1.ServiceTypeLoadBalancer || !out.ExternalLocal {
		return
	}
	if !port(n) {
		p.add("spec.healthCheckNodePort", "%d is not a port number: no health check is served", n)
		return
	}
	out.HealthCheckNodePort = uint16(n)
}

func (p *warnings) local(field, policy string) bool {
	switch policy {
	case "Local":
		return true
	case "Cluster", "":
	default:
		p.add(field, "%s is not Cluster or Local: taken as Cluster", show(policy))
	}
	return false
}

// sourceRanges sets the source ranges, and fails closed: an invalid range must not open the
// Service to every client. If any range is invalid, the load-balancer IPs of a family
// without a valid range are not served.
func (p *warnings) sourceRanges(out *lb.Service, list []string) {
	const field = "spec.loadBalancerSourceRanges"
	wrong := false
	for i, s := range list {
		r, note := parseRange(trimSpace(s))
		if !r.IsValid() {
			wrong = true
			p.add(path{field, i, ""}.String(), "%s %s: ignored", show(s), note)
			continue
		}
		if !slices.Contains(out.SourceRanges, r) {
			out.SourceRanges = append(out.SourceRanges, r)
		}
	}
	if !wrong {
		return
	}
	for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
		if slices.ContainsFunc(out.SourceRanges, func(r netip.Prefix) bool { return lb.FamilyOf(r.Addr()) == f }) {
			continue
		}
		var served []netip.Addr
		for _, a := range out.LoadBalancerIPs {
			if lb.FamilyOf(a) != f {
				served = append(served, a)
			}
		}
		if len(served) != len(out.LoadBalancerIPs) {
			out.LoadBalancerIPs = served
			p.add(field, "no valid %s range is left: the %s load-balancer IPs are not served, rather than open to everyone", f, f)
		}
	}
}
