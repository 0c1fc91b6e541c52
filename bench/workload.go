// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"net/netip"

	"shunt/lab"
	"shunt/lb"
)

// workload is what every contender gets: the same services with the same
// endpoints, in the same order. It crosses a pipe as JSON.
//
// Every service answers: its endpoints are addresses of the node's pod "server",
// which are the same on every contender's node. Those of the second service and
// the last but one are addresses of a pod on another node, which all share. The
// one endpoint of the service in the middle moves between two pods.
type workload struct {
	Size
	// Far is the first address of the pod on the other node, see farEndpoint.
	Far netip.Addr
	// Moved: the moving service's endpoint is at nextAddr now.
	Moved bool
}

const (
	backendPort = 8080
	// maxEndpoints: each is an address of the server's pod.
	maxEndpoints = 100
	maxServices  = 100_000
	minServices  = 5 // first and last of two kinds, and the moving one
	servicePort  = 80
	// firstNodePort and how many services have one beside the measured ones: the
	// API server's range of node ports ends at 32767.
	firstNodePort = 30_000
	nodePorts     = 1000
)

// Names that API objects and proxies have for nodes; each contender's node has
// the first one.
const (
	nodeName    = "bench"
	farNodeName = "bench-far"
)

// serverAddr and nextAddr are the pods between which the endpoint moves.
var (
	serverAddr = endpoint(0)
	nextAddr   = netip.AddrFrom4([4]byte{10, 245, 1, 1})
)

// endpoint is an address of the pod that serves, one of many: a single server
// behind all, so that who is drawn makes no difference.
func endpoint(e int) netip.Addr {
	b := lab.SharedCIDR4.Addr().As4()
	b[3] = byte(1 + e)
	return netip.AddrFrom4(b)
}

// farEndpoint is the same of the pod on the other node.
func farEndpoint(far netip.Addr, e int) netip.Addr {
	b := far.As4()
	if e > 0 {
		b[3] = byte(100 + e)
	}
	return netip.AddrFrom4(b)
}

// frontend is one port of a service.
type frontend struct {
	// Index of the service, Name of it as NAMESPACE/NAME:PORT.
	Index    int
	Name     string
	Protocol lb.Protocol
	Addr     netip.AddrPort
	NodePort uint16 // 0: none
	Backends []netip.AddrPort
	Node     string // of the backends
}

// moving is the index of the service whose one endpoint moves.
func (w *workload) moving() int { return w.Services / 2 }

// far says that a service's endpoints are on the other node.
func (w *workload) far(i int) bool { return i == 1 || i == w.Services-2 }

// measured services are connected to by every path.
func (w *workload) measured(i int) bool { return i < 2 || i >= w.Services-2 }

// clusterIP is a service's address: 10.96.1.0 and on, without a gap. (Those
// before are an API server's own.)
func clusterIP(i int) netip.Addr {
	n := i + 256
	return netip.AddrFrom4([4]byte{10, 96 + byte(n>>16), byte(n >> 8), byte(n)})
}

// nodePort is that of a service, 0 where it has none.
func (w *workload) nodePort(i int) uint16 {
	switch {
	case i < nodePorts:
		return firstNodePort + uint16(i)
	case w.measured(i):
		return firstNodePort + nodePorts + uint16(w.Services-1-i)
	}
	return 0
}

// frontends gives those of one service; the measured ones are served over UDP
// too.
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

// namespace of all services.
const namespace = "shunt-bench"

// objectSink is the part of lb.Sink that a workload fills.
type objectSink interface {
	SetService(*lb.Service)
	SetSlice(*lb.EndpointSlice)
}

// fill gives the services as shunt's store takes them.
func (w *workload) fill(sink objectSink) {
	for i := range w.Services {
		svc, slice := w.objects(i)
		sink.SetService(svc)
		sink.SetSlice(slice)
	}
}

// objects gives a service and its slice.
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
