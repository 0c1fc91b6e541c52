// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shunt/lb"
)

// account checks that everything that an object asks for is in its model, or in a
// warning with the object and the field. It does not use the converter's code to read
// objects.
type account struct {
	warnings []Warning
	missing  []string
}

// need records what is not in the model, unless there is a warning for the field or for
// one below it.
func (a *account) need(there bool, field string, what any) {
	if !there && !a.warned(field) {
		a.missing = append(a.missing, fmt.Sprintf("%s: %v is neither in the model nor in a warning", field, what))
	}
}

func (a *account) warned(field string) bool {
	return slices.ContainsFunc(a.warnings, func(w Warning) bool {
		rest, ok := strings.CutPrefix(w.Field, field)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

var leadingZeros = regexp.MustCompile(`(^|\.)0+([0-9])`)

func lenientAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		a, _ = netip.ParseAddr(leadingZeros.ReplaceAllString(s, "$1$2"))
	}
	return a.Unmap()
}

func lenientRange(s string) netip.Prefix {
	s = strings.TrimSpace(s)
	r, err := netip.ParsePrefix(s)
	if err != nil {
		r, _ = netip.ParsePrefix(leadingZeros.ReplaceAllString(s, "$1$2"))
	}
	if r.Addr().Is4In6() && r.Bits() >= 96 {
		r = netip.PrefixFrom(r.Addr().Unmap(), r.Bits()-96)
	}
	return r.Masked()
}

func accountService(s *v1.Service, m *lb.Service, warnings []Warning) []string {
	a := &account{warnings: warnings}
	for _, w := range warnings {
		if w.Kind != "Service" || w.Namespace != s.Namespace || w.Name != s.Name || w.Field == "" || w.Problem == "" {
			a.missing = append(a.missing, fmt.Sprintf("a warning that does not say of what: %+v", w))
		}
	}
	spec := &s.Spec
	if m == nil {
		skipped := spec.ClusterIP == "" || spec.ClusterIP == "None" || spec.Type == "ExternalName"
		a.need(skipped, "metadata", "the service")
		return a.missing
	}
	if m.NotServed {
		a.need(ofAnotherProxy(s.Labels) || spec.Type == "ExternalName", "metadata", "the service")
		return a.missing
	}
	if len(spec.ClusterIPs) == 0 {
		a.need(slices.Contains(m.ClusterIPs, lenientAddr(spec.ClusterIP)), "spec.clusterIP", spec.ClusterIP)
	}
	for i, ip := range spec.ClusterIPs {
		a.need(slices.Contains(m.ClusterIPs, lenientAddr(ip)), at("spec.clusterIPs", i), ip)
	}
	for i, ip := range spec.ExternalIPs {
		a.need(slices.Contains(m.ExternalIPs, lenientAddr(ip)), at("spec.externalIPs", i), ip)
	}
	for i, r := range spec.LoadBalancerSourceRanges {
		a.need(slices.Contains(m.SourceRanges, lenientRange(r)), at("spec.loadBalancerSourceRanges", i), r)
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		if in.IP == "" || (in.IPMode != nil && *in.IPMode == "Proxy") {
			continue
		}
		closed := slices.ContainsFunc(warnings, func(w Warning) bool { return w.Field == "spec.loadBalancerSourceRanges" })
		a.need(closed || slices.Contains(m.LoadBalancerIPs, lenientAddr(in.IP)), at("status.loadBalancer.ingress", i), in.IP)
	}
	if len(spec.LoadBalancerSourceRanges) > 0 && len(m.SourceRanges) == 0 && len(m.LoadBalancerIPs) > 0 {
		a.missing = append(a.missing, "a service with source ranges became open to everyone")
	}
	a.policies(spec, m)
	a.ports(spec, m)
	return a.missing
}

func at(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }

func (a *account) policies(spec *v1.ServiceSpec, m *lb.Service) {
	internal := v1.ServiceInternalTrafficPolicy("")
	if spec.InternalTrafficPolicy != nil {
		internal = *spec.InternalTrafficPolicy
	}
	is := map[bool]string{true: "Local", false: "Cluster"}
	a.need(internal == "" || string(internal) == is[m.InternalLocal], "spec.internalTrafficPolicy", internal)
	external := spec.ExternalTrafficPolicy
	a.need(external == "" || string(external) == is[m.ExternalLocal], "spec.externalTrafficPolicy", external)
	seconds := int32(m.AffinityTimeout.Seconds())
	switch c := spec.SessionAffinityConfig; {
	case spec.SessionAffinity != "ClientIP":
		a.need(seconds == 0 && (spec.SessionAffinity == "" || spec.SessionAffinity == "None"), "spec.sessionAffinity", spec.SessionAffinity)
	case c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil:
		a.need(seconds == 10800, "spec.sessionAffinity", "the default timeout")
	default:
		a.need(seconds == *c.ClientIP.TimeoutSeconds, "spec.sessionAffinityConfig.clientIP.timeoutSeconds", *c.ClientIP.TimeoutSeconds)
	}
	if spec.Type == "LoadBalancer" && external == "Local" {
		a.need(int32(m.HealthCheckNodePort) == spec.HealthCheckNodePort, "spec.healthCheckNodePort", spec.HealthCheckNodePort)
	} else if m.HealthCheckNodePort != 0 {
		a.missing = append(a.missing, "a health check port that nobody asked for")
	}
}

func (a *account) ports(spec *v1.ServiceSpec, m *lb.Service) {
	for i, p := range spec.Ports {
		proto := string(p.Protocol)
		if proto == "" {
			proto = "TCP"
		}
		there := slices.ContainsFunc(m.Ports, func(o lb.ServicePort) bool {
			return o.Name == p.Name && o.Protocol.String() == proto && int32(o.Port) == p.Port && int32(o.NodePort) == p.NodePort
		})
		a.need(there, at("spec.ports", i), p)
	}
}

func accountSlice(s *discoveryv1.EndpointSlice, m *lb.EndpointSlice, warnings []Warning) []string {
	a := &account{warnings: warnings}
	for _, w := range warnings {
		if w.Kind != "EndpointSlice" || w.Namespace != s.Namespace || w.Name != s.Name || w.Field == "" || w.Problem == "" {
			a.missing = append(a.missing, fmt.Sprintf("a warning that does not say of what: %+v", w))
		}
	}
	if m == nil {
		a.need(s.Labels[discoveryv1.LabelServiceName] == "" || a.warned("addressType"), "metadata", "the slice")
		return a.missing
	}
	a.need(m.LastChange.IsZero() == (s.Annotations[v1.EndpointsLastChangeTriggerTime] == ""), "metadata.annotations", "the trigger time")
	for i, p := range s.Ports {
		proto := "TCP"
		if p.Protocol != nil && *p.Protocol != "" {
			proto = string(*p.Protocol)
		}
		there := p.Name != nil && p.Port != nil && slices.ContainsFunc(m.Ports, func(o lb.EndpointPort) bool {
			return o.Name == *p.Name && o.Protocol.String() == proto && int32(o.Port) == *p.Port
		})
		a.need(there, at("ports", i), p)
	}
	for i, e := range s.Endpoints {
		a.endpoint(at("endpoints", i), &e, m)
	}
	return a.missing
}

func (a *account) endpoint(field string, e *discoveryv1.Endpoint, m *lb.EndpointSlice) {
	is := func(b *bool, null bool) bool { return (b == nil && null) || (b != nil && *b) }
	var hints lb.Hints
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			hints.Zones = append(hints.Zones, z.Name)
		}
		for _, n := range e.Hints.ForNodes {
			hints.Nodes = append(hints.Nodes, n.Name)
		}
	}
	there := slices.ContainsFunc(m.Endpoints, func(o lb.Endpoint) bool {
		c := e.Conditions
		got := lb.Hints{}
		if o.Hints != nil {
			got = *o.Hints
		}
		return len(e.Addresses) > 0 && o.Addr == lenientAddr(e.Addresses[0]) &&
			o.Ready == is(c.Ready, true) && o.Serving == is(c.Serving, true) && o.Terminating == is(c.Terminating, false) &&
			(e.NodeName == nil && o.Node == "" || e.NodeName != nil && o.Node == *e.NodeName) &&
			slices.Equal(got.Nodes, unique(hints.Nodes)) && slices.Equal(got.Zones, unique(hints.Zones))
	})
	a.need(there, field, e.Addresses)
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
