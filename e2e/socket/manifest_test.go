package socket_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"shunt/e2e/lab"
	"shunt/maps"
)

// Every service here is dual-stack and has a TCP and a UDP port of the same
// number, and so do the pods' servers.
const (
	servicePort = 80
	serverPort  = 8080
)

// The addresses of service number n, IPv4 first. The lab's IP plan reserves them.
func clusterIPs(n int) []netip.Addr { return serviceAddrs("10.96.0.%d", "fd00:10:96::%x", n) }

func balancerIPs(n int) []netip.Addr {
	return serviceAddrs("198.51.100.%d", "fd00:198:51:100::%x", n)
}

func externalIPs(n int) []netip.Addr { return balancerIPs(n + 100) }

func nodePortOf(n int) uint16 { return uint16(30000 + n) }

func serviceAddrs(v4, v6 string, n int) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(fmt.Sprintf(v4, n)), netip.MustParseAddr(fmt.Sprintf(v6, n))}
}

// vip is the address and port of service number n in a family, 4 or 6.
func vip(n, family int) netip.AddrPort { return at(clusterIPs(n)[family/5], servicePort) }

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func texts(addrs []netip.Addr) []string {
	var all []string
	for _, a := range addrs {
		all = append(all, a.String())
	}
	return all
}

// service makes Service number n, of which the addresses follow.
func service(name string, n int, options ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}
	s.Name, s.Namespace = name, "default"
	s.Spec.ClusterIPs = texts(clusterIPs(n))
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: portName(p), Protocol: p, Port: servicePort})
	}
	for _, o := range options {
		o(s)
	}
	return s
}

func portName(p corev1.Protocol) string {
	if p == corev1.ProtocolTCP {
		return "t"
	}
	return "u"
}

// withNodePort gives both ports the node port of service number n.
func withNodePort(n int) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].NodePort = int32(nodePortOf(n))
		}
	}
}

// everywhere gives a service every kind of frontend.
func everywhere(n int) func(*corev1.Service) {
	return func(s *corev1.Service) {
		withNodePort(n)(s)
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.ExternalIPs = texts(externalIPs(n))
		for _, a := range texts(balancerIPs(n)) {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
	}
}

func fromRanges(ranges ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = ranges }
}

func withAffinity(seconds int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

func internalLocal(s *corev1.Service) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	s.Spec.InternalTrafficPolicy = &local
}

func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// endpoint is an endpoint of a slice; both of the pod's addresses become one.
type endpoint struct {
	pod                         *lab.Pod
	ready, serving, terminating bool
	port                        uint16 // 0: serverPort
}

// up gives pods that are ready.
func up(pods ...*lab.Pod) []endpoint {
	var all []endpoint
	for _, p := range pods {
		all = append(all, endpoint{pod: p, ready: true, serving: true})
	}
	return all
}

func unready(p *lab.Pod) endpoint { return endpoint{pod: p} }

func draining(p *lab.Pod) endpoint { return endpoint{pod: p, serving: true, terminating: true} }

// sliceOf makes the two slices of a service, of its endpoints in either family.
func slicesOf(service string, endpoints ...endpoint) []any {
	var all []any
	for i, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		s := newSlice(service, fmt.Sprintf("%s-v%d", service, 4+2*i), family)
		port := int32(serverPort)
		for _, e := range endpoints {
			if e.port != 0 {
				port = int32(e.port)
			}
			node := e.pod.Node().Name()
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{e.pod.Addrs()[i].String()}, NodeName: &node,
				Conditions: discoveryv1.EndpointConditions{Ready: &e.ready, Serving: &e.serving, Terminating: &e.terminating}})
		}
		for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
			name := portName(p)
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &p, Port: &port})
		}
		all = append(all, s)
	}
	return all
}

func newSlice(service, name string, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, AddressType: family}
	s.Name, s.Namespace = name, "default"
	s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	return s
}

// manifests is the file that daemons read. It is replaced as a whole, so that a
// daemon sees all of a change at once.
type manifests struct {
	t       *testing.T
	path    string
	objects map[string]any // by kind and name
	// generation counts writes. It is in the file as the one endpoint's port of a
	// service that sorts last, so that it shows in the maps when all is there that
	// came with it.
	generation uint16
}

// mark is the service that shows the generation.
var mark = netip.MustParseAddrPort("10.96.255.255:9")

func newManifests(t *testing.T, dir string) *manifests {
	t.Helper()
	return &manifests{t: t, path: filepath.Join(dir, "all.yaml"), objects: map[string]any{}}
}

func keyOf(object any) string {
	switch o := object.(type) {
	case *corev1.Service:
		return "service " + o.Name
	case *discoveryv1.EndpointSlice:
		return "slice " + o.Name
	case *corev1.Node:
		return "node " + o.Name
	}
	panic(fmt.Sprintf("no key for a %T", object))
}

// put adds or replaces objects; a []any counts as what is in it.
func (m *manifests) put(objects ...any) {
	for _, o := range objects {
		if list, ok := o.([]any); ok {
			m.put(list...)
			continue
		}
		m.objects[keyOf(o)] = o
	}
}

// removeService takes a service away with its slices.
func (m *manifests) removeService(name string) {
	delete(m.objects, "service "+name)
	delete(m.objects, "slice "+name+"-v4")
	delete(m.objects, "slice "+name+"-v6")
}

// write brings the file up to date.
func (m *manifests) write() {
	m.t.Helper()
	m.generation++
	var b bytes.Buffer
	all := slices.AppendSeq(m.marker(), func(yield func(any) bool) {
		for _, o := range m.objects {
			if !yield(o) {
				return
			}
		}
	})
	for _, o := range all {
		text, err := yaml.Marshal(o)
		if err != nil {
			m.t.Fatal(err)
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	if err := os.WriteFile(m.path+".new", b.Bytes(), 0o644); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(m.path+".new", m.path); err != nil {
		m.t.Fatal(err)
	}
}

// marker gives the service of the generation: a slice of a new name, so that the
// last thing that a daemon hears of a change is that the one before is gone.
func (m *manifests) marker() []any {
	svc := service("zzz", 1)
	svc.Namespace = "zzz"
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs = mark.Addr().String(), []string{mark.Addr().String()}
	svc.Spec.IPFamilies = svc.Spec.IPFamilies[:1]
	svc.Spec.Ports = svc.Spec.Ports[1:]
	svc.Spec.Ports[0].Port = int32(mark.Port())
	s := newSlice("zzz", fmt.Sprintf("zzz-%d", m.generation), discoveryv1.AddressTypeIPv4)
	s.Namespace = "zzz"
	port := int32(m.generation)
	s.Ports = []discoveryv1.EndpointPort{{Name: &svc.Spec.Ports[0].Name, Protocol: &svc.Spec.Ports[0].Protocol, Port: &port}}
	s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{mark.Addr().String()}}}
	return []any{svc, s}
}

// settle waits until the daemon's maps hold what the file says.
func (m *manifests) settle(d *daemon) {
	m.t.Helper()
	want := []netip.AddrPort{netip.AddrPortFrom(mark.Addr(), m.generation)}
	eventually(m.t, fmt.Sprintf("generation %d is in the maps of %s", m.generation, d.node.Name()), func() bool {
		if !d.alive() {
			m.t.Fatalf("the daemon ended: %v", d.cmd.Wait())
		}
		return slices.Equal(backendsOf(d.dump(), mark, 17), want)
	})
}

// backendsOf gives where new connections from this node to a frontend may go,
// sorted.
func backendsOf(dump *maps.Dump, frontend netip.AddrPort, protocol uint8) []netip.AddrPort {
	svc := dump.Frontends[maps.NewFrontendKey(frontend.Addr(), frontend.Port(), protocol)]
	ids, _ := dump.Range(svc.Inside) // half a change has ranges all the same
	var all []netip.AddrPort
	for _, id := range ids {
		all = append(all, dump.Backends[id].AddrPort())
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}
