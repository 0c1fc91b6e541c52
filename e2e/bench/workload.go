package bench

import (
	"fmt"
	"net/netip"

	"shunt/lb"
)

// workload is what every contender gets: the same services with the same
// endpoints, in the same order. It crosses a pipe as JSON.
type workload struct {
	// Services is how many there are; Endpoints what each has.
	Services, Endpoints int
	// Server has the endpoints that answer, see endpoint; Next takes over when
	// the endpoint of the moving service moves.
	Server, Next netip.Addr
	// Moved: the endpoint is at Next now.
	Moved bool
}

const (
	backendPort = 8080
	// maxEndpoints: each is an address of the server's pod.
	maxEndpoints = 100
	maxServices  = 100_000
	minServices  = 3 // first, last, moving
	servicePort  = 80
)

// frontend is one port of a service.
type frontend struct {
	// Index of the service, Name of it as NAMESPACE/NAME:PORT.
	Index    int
	Name     string
	Protocol lb.Protocol
	Addr     netip.AddrPort
	Backends []netip.AddrPort
}

// moving is the index of the service whose one endpoint moves.
func (w *workload) moving() int { return w.Services / 2 }

// endpoint is an address of the pod that serves, one of many: a single server
// behind all, so that who is drawn makes no difference.
func endpoint(server netip.Addr, e int) netip.Addr {
	if e == 0 {
		return server
	}
	b := server.As4()
	b[3] = byte(100 + e)
	return netip.AddrFrom4(b)
}

// clusterIP is a service's address: 10.96.0.1 and on, without a gap.
func clusterIP(i int) netip.Addr {
	n := i + 1
	return netip.AddrFrom4([4]byte{10, 96 + byte(n>>16), byte(n >> 8), byte(n)})
}

// frontends gives those of one service. First and last are served over UDP too;
// those in between have endpoints that nobody connects to.
func (w *workload) frontends(i int) []frontend {
	f := frontend{Index: i, Name: fmt.Sprintf("bench/svc-%d:tcp", i), Protocol: lb.TCP,
		Addr: netip.AddrPortFrom(clusterIP(i), servicePort)}
	switch i {
	case w.moving():
		at := w.Server
		if w.Moved {
			at = w.Next
		}
		f.Backends = []netip.AddrPort{netip.AddrPortFrom(at, backendPort)}
	case 0, w.Services - 1:
		for e := range w.Endpoints {
			f.Backends = append(f.Backends, netip.AddrPortFrom(endpoint(w.Server, e), backendPort))
		}
		udp := f
		udp.Name, udp.Protocol = fmt.Sprintf("bench/svc-%d:udp", i), lb.UDP
		return []frontend{f, udp}
	default:
		for e := range w.Endpoints {
			n := i*w.Endpoints + e
			f.Backends = append(f.Backends, netip.AddrPortFrom(
				netip.AddrFrom4([4]byte{100, byte(n >> 16), byte(n >> 8), byte(n)}), backendPort))
		}
	}
	return []frontend{f}
}

// objectSink is the part of lb.Sink that a workload fills.
type objectSink interface {
	SetService(*lb.Service)
	SetSlice(*lb.EndpointSlice)
}

// fill gives the services as shunt's store takes them.
func (w *workload) fill(sink objectSink) {
	for i := range w.Services {
		svc, list := w.objects(i)
		sink.SetService(svc)
		for _, s := range list {
			sink.SetSlice(s)
		}
	}
}

// objects gives a service and its slices, one for each port.
func (w *workload) objects(i int) (*lb.Service, []*lb.EndpointSlice) {
	name := lb.ServiceName{Namespace: "bench", Name: fmt.Sprintf("svc-%d", i)}
	svc := &lb.Service{Name: name, ClusterIPs: []netip.Addr{clusterIP(i)}}
	var list []*lb.EndpointSlice
	for _, f := range w.frontends(i) {
		port := f.Protocol.String()
		svc.Ports = append(svc.Ports, lb.ServicePort{Name: port, Protocol: f.Protocol, Port: servicePort})
		sl := &lb.EndpointSlice{Service: name,
			Name:  lb.SliceName{Namespace: "bench", Name: fmt.Sprintf("svc-%d-%s", i, port)},
			Ports: []lb.EndpointPort{{Name: port, Protocol: f.Protocol, Port: backendPort}}}
		for _, b := range f.Backends {
			sl.Endpoints = append(sl.Endpoints, lb.Endpoint{Addr: b.Addr(), Ready: true, Serving: true})
		}
		list = append(list, sl)
	}
	return svc, list
}
