// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shunt/lab"
)

// Every service here is dual-stack and has a TCP and a UDP port of the same
// number, ServicePort, and so do the pods' servers, ServerPort.
const (
	ServicePort = 80
	ServerPort  = 8080
)

// ClusterIPs are those of service number n, IPv4 first. The lab's IP plan reserves them.
func ClusterIPs(n int) []netip.Addr { return serviceAddrs("10.96.0.%d", "fd00:10:96::%x", n) }

// BalancerIPs are the load-balancer IPs of service number n, IPv4 first.
func BalancerIPs(n int) []netip.Addr {
	return serviceAddrs("198.51.100.%d", "fd00:198:51:100::%x", n)
}

// ExternalIPs are those of service number n, IPv4 first.
func ExternalIPs(n int) []netip.Addr { return BalancerIPs(n + 100) }

// NodePortOf is the node port of service number n.
func NodePortOf(n int) uint16 { return uint16(30000 + n) }

func serviceAddrs(v4, v6 string, n int) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(fmt.Sprintf(v4, n)), netip.MustParseAddr(fmt.Sprintf(v6, n))}
}

// VIP is the address and port of service number n in a family, 4 or 6.
func VIP(n, family int) netip.AddrPort { return At(ClusterIPs(n)[family/5], ServicePort) }

// At is an address with a port.
func At(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// Texts writes addresses down as objects have them.
func Texts(addrs []netip.Addr) []string {
	var all []string
	for _, a := range addrs {
		all = append(all, a.String())
	}
	return all
}

// Service makes Service number n, of which the addresses follow.
func Service(name string, n int, options ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}
	s.Name, s.Namespace = name, "default"
	s.Spec.ClusterIPs = Texts(ClusterIPs(n))
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: PortName(p), Protocol: p, Port: ServicePort})
	}
	for _, o := range options {
		o(s)
	}
	return s
}

// PortName is how services and slices here name the port of a protocol.
func PortName(p corev1.Protocol) string {
	if p == corev1.ProtocolTCP {
		return "t"
	}
	return "u"
}

// WithNodePort gives both ports the node port of service number n.
func WithNodePort(n int) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].NodePort = int32(NodePortOf(n))
		}
	}
}

// Everywhere gives a service every kind of frontend.
func Everywhere(n int) func(*corev1.Service) {
	return func(s *corev1.Service) {
		WithNodePort(n)(s)
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.ExternalIPs = Texts(ExternalIPs(n))
		for _, a := range Texts(BalancerIPs(n)) {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
	}
}

// WithAffinity sets ClientIP affinity.
func WithAffinity(seconds int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

// FromRanges sets loadBalancerSourceRanges.
func FromRanges(ranges ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = ranges }
}

// InternalLocal sets the internal traffic policy Local.
func InternalLocal(s *corev1.Service) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	s.Spec.InternalTrafficPolicy = &local
}

// ExternalLocal sets the external traffic policy Local.
func ExternalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// Endpoint is an endpoint of a slice; both of the pod's addresses become one.
type Endpoint struct {
	Pod                         *lab.Pod
	Ready, Serving, Terminating bool
	Port                        uint16 // 0: ServerPort
}

// Up gives pods that are ready.
func Up(pods ...*lab.Pod) []Endpoint { return UpAt(0, pods...) }

// UpAt gives pods that are ready at a port.
func UpAt(port uint16, pods ...*lab.Pod) []Endpoint {
	var all []Endpoint
	for _, p := range pods {
		all = append(all, Endpoint{Pod: p, Ready: true, Serving: true, Port: port})
	}
	return all
}

// Unready gives a pod that serves nobody.
func Unready(p *lab.Pod) Endpoint { return Endpoint{Pod: p} }

// Draining gives a pod that ends, and serves until then.
func Draining(p *lab.Pod) Endpoint { return Endpoint{Pod: p, Serving: true, Terminating: true} }

// SlicesOf makes the two slices of a service, of its endpoints in either family.
func SlicesOf(service string, endpoints ...Endpoint) []any {
	var all []any
	for i, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		s := NewSlice(service, fmt.Sprintf("%s-v%d", service, 4+2*i), family)
		port := int32(ServerPort)
		for _, e := range endpoints {
			if e.Port != 0 {
				port = int32(e.Port)
			}
			node := e.Pod.Node().Name()
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{e.Pod.Addrs()[i].String()}, NodeName: &node,
				Conditions: discoveryv1.EndpointConditions{Ready: &e.Ready, Serving: &e.Serving, Terminating: &e.Terminating}})
		}
		for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
			name := PortName(p)
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &p, Port: &port})
		}
		all = append(all, s)
	}
	return all
}

// NewSlice makes a slice of a service without endpoints and ports.
func NewSlice(service, name string, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: family,
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}}
	s.Name, s.Namespace = name, "default"
	s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	return s
}
