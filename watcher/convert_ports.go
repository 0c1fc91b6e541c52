// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"strings"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"shunt/lb"
)

// trimSpace removes blanks around a source range: the API allows them in no other field.
func trimSpace(s string) string { return strings.TrimSpace(s) }

// servicePorts converts spec.ports by the rules of API validation. A port number occurs once
// per protocol. A name occurs once per protocol too, because the pair of name and protocol
// selects the endpoints. A port without a name must be the only port. A port that breaks a
// rule is left out, with a warning.
func (c *Converter) servicePorts(p *warnings, spec *v1.ServiceSpec) []lb.ServicePort {
	const field = "spec.ports"
	var out []lb.ServicePort
	var at []int // the index in spec.ports of each
	for i := range spec.Ports {
		in := &spec.Ports[i]
		proto, why := protocol(in.Protocol)
		switch {
		case why != "":
			p.add(path{field, i, "protocol"}.String(), "%s: port ignored", why)
			continue
		case !port(in.Port):
			p.add(path{field, i, "port"}.String(), "%d is not a port number: port ignored", in.Port)
			continue
		}
		if msgs := validation.IsDNS1123Label(in.Name); in.Name != "" && len(msgs) > 0 {
			p.add(path{field, i, "name"}.String(), "%s: port %d ignored: %s", show(in.Name), in.Port, msgs[0])
			continue
		}
		sp := lb.ServicePort{Name: c.shared.string(in.Name), Protocol: proto, Port: uint16(in.Port)}
		if p.taken(out, at, i, sp) {
			continue
		}
		sp.NodePort = p.nodePort(out, path{field, i, "nodePort"}, spec.Type, proto, in.NodePort)
		out, at = append(out, sp), append(at, i)
	}
	if len(out) < 2 {
		return out
	}
	named := out[:0]
	for i, sp := range out {
		if sp.Name == "" {
			p.add(path{field, at[i], "name"}.String(), "is missing, which only a single port may: port %d ignored", sp.Port)
			continue
		}
		named = append(named, sp)
	}
	return named
}

// taken reports whether an earlier port has the number or the name of sp, and adds a warning
// if so.
func (p *warnings) taken(before []lb.ServicePort, at []int, i int, sp lb.ServicePort) bool {
	for j, b := range before {
		sameProtocol := b.Protocol == sp.Protocol
		if b.Port == sp.Port && sameProtocol {
			p.add(path{"spec.ports", i, "port"}.String(), "%d/%s is that of spec.ports[%d]: port ignored", sp.Port, sp.Protocol, at[j])
			return true
		}
		if b.Name == sp.Name && (sameProtocol || sp.Name == "") {
			p.add(path{"spec.ports", i, "name"}.String(), "%s is that of spec.ports[%d]: port %d ignored", show(sp.Name), at[j], sp.Port)
			return true
		}
	}
	return false
}

// nodePort returns the node port to serve, 0 for none. If the node port is refused, the
// service port's other frontends are still served.
func (p *warnings) nodePort(before []lb.ServicePort, at path, t v1.ServiceType, proto lb.Protocol, n int32) uint16 {
	if n == 0 {
		return 0
	}
	if !port(n) {
		p.add(at.String(), "%d is not a port number: node port ignored", n)
		return 0
	}
	if t != v1.ServiceTypeNodePort && t != v1.ServiceTypeLoadBalancer {
		p.add(at.String(), "%d needs type NodePort or LoadBalancer, not %s: node port ignored", n, show(string(t)))
		return 0
	}
	for _, b := range before {
		if b.NodePort == uint16(n) && b.Protocol == proto {
			p.add(at.String(), "%d/%s is that of port %d: node port ignored", n, proto, b.Port)
			return 0
		}
	}
	return uint16(n)
}

// endpointPorts converts the ports of a slice. It leaves out a port whose name is nil or whose
// number is nil or 0, since no service port can match it. An empty name is a name.
func (c *Converter) endpointPorts(p *warnings, ports []discoveryv1.EndpointPort) []lb.EndpointPort {
	const field = "ports"
	if len(ports) == 0 {
		return nil
	}
	out := make([]lb.EndpointPort, 0, len(ports))
	for i := range ports {
		in := &ports[i]
		var proto lb.Protocol
		why := ""
		if in.Protocol == nil {
			proto = lb.TCP
		} else {
			proto, why = protocol(*in.Protocol)
		}
		switch {
		case in.Name == nil:
			p.add(path{field, i, "name"}.String(), `is missing: port ignored (the unnamed port is written as name: "")`)
			continue
		case in.Port == nil || *in.Port == 0:
			p.add(path{field, i, "port"}.String(), "is missing: port ignored")
			continue
		case !port(*in.Port):
			p.add(path{field, i, "port"}.String(), "%d is not a port number: port ignored", *in.Port)
			continue
		case why != "":
			p.add(path{field, i, "protocol"}.String(), "%s: port ignored", why)
			continue
		}
		ep := lb.EndpointPort{Name: c.shared.string(*in.Name), Protocol: proto, Port: uint16(*in.Port)}
		if j := sameJoin(out, ep); j >= 0 {
			if out[j] != ep {
				p.add(path{field, i, "name"}.String(), "%s/%s is there with port %d already: port ignored",
					show(ep.Name), proto, out[j].Port)
			}
			continue
		}
		out = append(out, ep)
	}
	return out
}

// sameJoin returns the index of the port that belongs to the same service port as ep (same name
// and protocol), -1 if there is none.
func sameJoin(ports []lb.EndpointPort, ep lb.EndpointPort) int {
	for j, o := range ports {
		if o.Name == ep.Name && o.Protocol == ep.Protocol {
			return j
		}
	}
	return -1
}
