// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"strings"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"shunt/lb"
)

// trimSpace is what source ranges, and nothing else, are forgiven.
func trimSpace(s string) string { return strings.TrimSpace(s) }

// servicePorts converts spec.ports. As API validation has it, a number is used
// once per protocol, a name (with its protocol: together they join endpoints)
// once, and a port without a name is the only one; what breaks that is left out.
func (c *Converter) servicePorts(p *problems, spec *v1.ServiceSpec) []lb.ServicePort {
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

// taken says, with a warning, that a port before this one has its number or its
// name.
func (p *problems) taken(before []lb.ServicePort, at []int, i int, sp lb.ServicePort) bool {
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

// nodePort is 0 where none is to be served; the port's other frontends are.
func (p *problems) nodePort(before []lb.ServicePort, at path, t v1.ServiceType, proto lb.Protocol, n int32) uint16 {
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

// endpointPorts converts the ports of a slice. A nil name (an empty one is a
// name), and a nil or zero number, mean no port that a Service could join.
func (c *Converter) endpointPorts(p *problems, ports []discoveryv1.EndpointPort) []lb.EndpointPort {
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

// sameJoin finds the port that joins the same service port, -1 if none does.
func sameJoin(ports []lb.EndpointPort, ep lb.EndpointPort) int {
	for j, o := range ports {
		if o.Name == ep.Name && o.Protocol == ep.Protocol {
			return j
		}
	}
	return -1
}
