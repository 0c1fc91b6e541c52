// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"net/netip"

	"shunt/lab"
	"shunt/lb"
)

// workload is a set of services with endpoints, the same and in the same order for every
// contender. It is sent to a process as JSON.
//
// Every service answers. Its endpoints are addresses of the pod "server", which are the same
// on every contender's node. Two services are exceptions: the endpoints of the second service
// and of the second-last service are addresses of a pod on another node, which all contenders
// share. The service in the middle has one endpoint, which moves between two pods.
type workload struct {
	Size
	// Far is the first address of the pod on the other node, see farEndpoint.
	Far netip.Addr
	// Moved means that the endpoint of the moving service is at nextAddr.
	Moved bool
}

const (
	backendPort = 8080
	// maxEndpoints is bounded by the addresses of the server's pod.
	maxEndpoints = 100
	maxServices  = 100_000
	minServices  = 5 // first and last of two kinds, and the moving one
	servicePort  = 80
	// firstNodePort is the first node port, nodePorts the number of services that have a node
	// port in addition to the measured services: the API server's range ends at 32767.
	firstNodePort = 30_000
	nodePorts     = 1000
)

// Names of nodes in API objects and for proxies. Each contender's node has the name nodeName.
const (
	nodeName    = "bench"
	farNodeName = "bench-far"
)

// serverAddr and nextAddr are the addresses between which the endpoint moves.
var (
	serverAddr = endpoint(0)
	nextAddr   = netip.AddrFrom4([4]byte{10, 245, 1, 1})
)

// endpoint returns an address of the pod "server". All these addresses belong to one server, so
// that the choice of an endpoint does not affect the measurement.
func endpoint(e int) netip.Addr {
	b := lab.SharedCIDR4.Addr().As4()
	b[3] = byte(1 + e)
	return netip.AddrFrom4(b)
}

// farEndpoint returns an address of the pod on the other node.
func farEndpoint(far netip.Addr, e int) netip.Addr {
	b := far.As4()
	if e > 0 {
		b[3] = byte(100 + e)
	}
	return netip.AddrFrom4(b)
}

// frontend is one port of a service.
type frontend struct {
	// Index is the index of the service, Name the service port as NAMESPACE/NAME:PORT.
	Index    int
	Name     string
	Protocol lb.Protocol
	Addr     netip.AddrPort
	NodePort uint16 // 0: none
	Backends []netip.AddrPort
	Node     string // of the backends
}

// moving returns the index of the service whose one endpoint moves.
func (w *workload) moving() int { return w.Services / 2 }

// far reports whether a service's endpoints are on the other node.
func (w *workload) far(i int) bool { return i == 1 || i == w.Services-2 }

// measured reports whether connections to the service are measured.
func (w *workload) measured(i int) bool { return i < 2 || i >= w.Services-2 }

// clusterIP returns a service's address: 10.96.1.0 and on, without a gap. (Lower addresses
// are for the API server's own services.)
func clusterIP(i int) netip.Addr {
	n := i + 256
	return netip.AddrFrom4([4]byte{10, 96 + byte(n>>16), byte(n >> 8), byte(n)})
}

// nodePort returns a service's node port, 0 if it has none.
func (w *workload) nodePort(i int) uint16 {
	switch {
	case i < nodePorts:
		return firstNodePort + uint16(i)
	case w.measured(i):
		return firstNodePort + nodePorts + uint16(w.Services-1-i)
	}
	return 0
}

// frontends returns the ports of one service. The measured services also serve UDP.
func (w *workload) frontends(i int) []frontend {
	f := frontend{Index: i, Name: fmt.Sprintf("%s:tcp", nameOf(i)), Protocol: lb.TCP, NodePort: w.nodePort(i),
		Addr: netip.AddrPortFrom(clusterIP(i), servicePort), Node: nodeName}
	add := func(a netip.Addr) { f.Backends = append(f.Backends, netip.AddrPortFrom(a, backendPort)) }
	switch {
	case i == w.moving():
		if w.Moved {
			add(nextAddr)
		} else {
			add(serverAddr)
		}
	case w.far(i):
		f.Node = farNodeName
		for e := range w.Endpoints {
			add(farEndpoint(w.Far, e))
		}
	default:
		for e := range w.Endpoints {
			add(endpoint(e))
		}
	}
	if !w.measured(i) {
		return []frontend{f}
	}
	udp := f
	udp.Name, udp.Protocol = fmt.Sprintf("%s:udp", nameOf(i)), lb.UDP
	return []frontend{f, udp}
}

func nameOf(i int) lb.ServiceName {
	return lb.ServiceName{Namespace: namespace, Name: fmt.Sprintf("svc-%d", i)}
}

// namespace is the namespace of all services.
const namespace = "shunt-bench"

// objectSink is the part of lb.Sink that a workload uses.
type objectSink interface {
	SetService(*lb.Service)
	SetSlice(*lb.EndpointSlice)
}

// fill passes all services to shunt's store.
func (w *workload) fill(sink objectSink) {
	for i := range w.Services {
		svc, slice := w.objects(i)
		sink.SetService(svc)
		sink.SetSlice(slice)
	}
}

// objects returns a service and its slice.
func (w *workload) objects(i int) (*lb.Service, *lb.EndpointSlice) {
	svc := &lb.Service{Name: nameOf(i), ClusterIPs: []netip.Addr{clusterIP(i)}}
	slice := &lb.EndpointSlice{Service: svc.Name, Name: lb.SliceName{Namespace: namespace, Name: svc.Name.Name + "-1"}}
	all := w.frontends(i)
	for _, f := range all {
		port := f.Protocol.String()
		svc.Ports = append(svc.Ports, lb.ServicePort{Name: port, Protocol: f.Protocol, Port: servicePort, NodePort: f.NodePort})
		slice.Ports = append(slice.Ports, lb.EndpointPort{Name: port, Protocol: f.Protocol, Port: backendPort})
	}
	for _, b := range all[0].Backends {
		slice.Endpoints = append(slice.Endpoints, lb.Endpoint{Addr: b.Addr(), Ready: true, Serving: true, Node: all[0].Node})
	}
	return svc, slice
}
