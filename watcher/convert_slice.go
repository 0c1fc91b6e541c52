// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shunt/lb"
)

// Slice converts an EndpointSlice. It returns nil for a slice without the label of a Service
// (no warning), whose addressType is not IPv4 or IPv6, that has only addresses of the other
// family, or that has no valid name.
func (c *Converter) Slice(s *discoveryv1.EndpointSlice) (*lb.EndpointSlice, []Warning) {
	service := s.Labels[discoveryv1.LabelServiceName]
	if service == "" {
		return nil, nil
	}
	p := &warnings{of: Warning{
		Kind: kindSlice, Namespace: s.Namespace, Name: s.Name,
		Service: lb.ServiceName{Namespace: s.Namespace, Name: service},
	}}
	if !p.named() || !p.validName("metadata.labels["+discoveryv1.LabelServiceName+"]", service) {
		return nil, p.list
	}
	f, ok := addressFamily(s.AddressType)
	if !ok {
		p.add("addressType", "%s is not IPv4 or IPv6: slice ignored", show(string(s.AddressType)))
		return nil, p.list
	}
	namespace := c.shared.string(s.Namespace)
	out := &lb.EndpointSlice{
		Name:       lb.SliceName{Namespace: namespace, Name: s.Name},
		Service:    lb.ServiceName{Namespace: namespace, Name: c.shared.string(service)},
		LastChange: p.lastChange(s.Annotations),
		Ports:      c.endpointPorts(p, s.Ports),
	}
	before, wrong := len(p.list), 0
	out.Endpoints, wrong = c.endpoints(p, s.Endpoints, f)
	if wrong > 0 && wrong == len(s.Endpoints) {
		p.list = p.list[:before]
		p.event(EventIncorrectIPVersion, "addressType", "is %s, but no address of the slice (%s, …) is: slice ignored",
			f, show(s.Endpoints[0].Addresses[0]))
		return nil, p.list
	}
	return out, p.list
}

// lastChange returns the time in the annotation EndpointsLastChangeTriggerTime, zero if the
// annotation is missing or malformed. Only the metric of the programming latency uses it.
func (p *warnings) lastChange(annotations map[string]string) time.Time {
	s, ok := annotations[v1.EndpointsLastChangeTriggerTime]
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		p.add("metadata.annotations["+v1.EndpointsLastChangeTriggerTime+"]", "%s is not an RFC 3339 time: ignored", show(s))
		return time.Time{}
	}
	return t.UTC()
}

// endpoints converts the endpoints of a slice of family f. wrong is the number of
// endpoints that were left out because their address is of the other family.
func (c *Converter) endpoints(p *warnings, in []discoveryv1.Endpoint, f lb.Family) (out []lb.Endpoint, wrong int) {
	if len(in) == 0 {
		return nil, 0
	}
	out = make([]lb.Endpoint, 0, len(in))
	for i := range in {
		e := &in[i]
		if len(e.Addresses) == 0 {
			p.add(path{"endpoints", i, "addresses"}.String(), "is empty: endpoint ignored")
			continue
		}
		at := path{"endpoints", i, "addresses[0]"}
		a, ok := p.readAddr(at, e.Addresses[0], asEndpoint)
		if !ok {
			continue
		}
		if has := lb.FamilyOf(a); has != f {
			p.event(EventIncorrectIPVersion, at.String(), "%s is %s, but addressType is %s: endpoint ignored", show(e.Addresses[0]), has, f)
			wrong++
			continue
		}
		ep := lb.Endpoint{
			Addr:        a,
			Ready:       or(e.Conditions.Ready, true),
			Serving:     or(e.Conditions.Serving, true),
			Terminating: or(e.Conditions.Terminating, false),
			Hints:       c.hints(p, i, e.Hints),
		}
		if e.NodeName != nil {
			ep.Node = c.shared.string(*e.NodeName)
		}
		out = append(out, ep)
	}
	return out, wrong
}

// or returns *b, or the API's default if b is nil.
func or(b *bool, otherwise bool) bool {
	if b == nil {
		return otherwise
	}
	return *b
}

// hints converts hints; nil where there are none.
func (c *Converter) hints(p *warnings, i int, in *discoveryv1.EndpointHints) *lb.Hints {
	if in == nil {
		return nil
	}
	var buf [8]string // the API's maximum of each: no allocation
	nodes := buf[:0]
	for j, n := range in.ForNodes {
		nodes = p.hint(nodes, i, path{"hints.forNodes", j, "name"}, n.Name)
	}
	var buf2 [8]string
	zones := buf2[:0]
	for j, z := range in.ForZones {
		zones = p.hint(zones, i, path{"hints.forZones", j, "name"}, z.Name)
	}
	return c.shared.hintSet(nodes, zones)
}

func (p *warnings) hint(to []string, i int, at path, name string) []string {
	if name == "" || strings.ContainsRune(name, 0) {
		p.add(path{"endpoints", i, at.String()}.String(), "%s is no name: hint ignored", show(name))
		return to
	}
	if slices.Contains(to, name) {
		return to
	}
	return append(to, name)
}
