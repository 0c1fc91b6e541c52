// SPDX-License-Identifier: Apache-2.0

package lb

// fewPorts is the number of service ports up to which a lookup walks through the slices: an index
// would cost more.
const fewPorts = 8

// portIndex finds the ports in a Service's slices by name and protocol. It is made once for all
// ports of a Service: one Service may have thousands, and a walk for each would be quadratic.
type portIndex struct {
	slices []*EndpointSlice
	// first has the place in all of the first port of each name and protocol; nil: there is no
	// index.
	first map[portName]int32
	all   []indexedPort
	// compared counts the ports that were compared or indexed: the tests check that it grows with
	// the size of the Service.
	compared int
}

type portName struct {
	name     string
	protocol Protocol
}

// indexedPort is a port of a slice. next is the place of the next one of the same name and
// protocol; -1: there is none.
type indexedPort struct {
	slice, next int32
	port        uint16
}

// newPortIndex returns an index for lookups of so many ports.
func newPortIndex(slices []*EndpointSlice, lookups int) portIndex {
	x := portIndex{slices: slices}
	if lookups <= fewPorts {
		return x
	}
	total := 0
	for _, s := range slices {
		total += len(s.Ports)
	}
	x.first, x.all = make(map[portName]int32, total), make([]indexedPort, 0, total)
	for n := len(slices) - 1; n >= 0; n-- { // backwards: each list then has the order of the slices
		for i := len(slices[n].Ports) - 1; i >= 0; i-- {
			p := &slices[n].Ports[i]
			key := portName{p.Name, p.Protocol}
			next, there := x.first[key]
			if !there {
				next = -1
			}
			x.first[key] = int32(len(x.all))
			x.all = append(x.all, indexedPort{int32(n), next, p.Port})
			x.compared++
		}
	}
	return x
}

// each calls visit for every port of that name and protocol, with the index of its slice and its
// number.
func (x *portIndex) each(name string, protocol Protocol, visit func(slice int, port uint16)) {
	if x.first != nil {
		x.compared++
		i, there := x.first[portName{name, protocol}]
		for there && i >= 0 {
			x.compared++
			visit(int(x.all[i].slice), x.all[i].port)
			i = x.all[i].next
		}
		return
	}
	for n, s := range x.slices {
		x.compared += len(s.Ports)
		for i := range s.Ports {
			if p := &s.Ports[i]; p.Name == name && p.Protocol == protocol {
				visit(n, p.Port)
			}
		}
	}
}
