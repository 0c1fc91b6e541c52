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

// Every service here is dual-stack and has a TCP and a UDP port with the same number,
// ServicePort. The pods' servers have ServerPort.
const (
	ServicePort = 80
	ServerPort  = 8080
)

// ClusterIPs returns the cluster IPs of service number n, IPv4 first. The lab's IP plan
// reserves them.
func ClusterIPs(n int) []netip.Addr { return serviceAddrs("10.96.0.%d", "fd00:10:96::%x", n) }

// BalancerIPs returns the load-balancer IPs of service number n, IPv4 first.
func BalancerIPs(n int) []netip.Addr {
	return serviceAddrs("198.51.100.%d", "fd00:198:51:100::%x", n)
}

// ExternalIPs returns the external IPs of service number n, IPv4 first.
func ExternalIPs(n int) []netip.Addr { return BalancerIPs(n + 100) }

// NodePortOf returns the node port of service number n.
func NodePortOf(n int) uint16 { return uint16(30000 + n) }

func serviceAddrs(v4, v6 string, n int) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(fmt.Sprintf(v4, n)), netip.MustParseAddr(fmt.Sprintf(v6, n))}
}

// VIP returns the cluster IP and port of service number n in a family, 4 or 6.
func VIP(n, family int) netip.AddrPort { return At(ClusterIPs(n)[family/5], ServicePort) }

// At returns an address with a port.
func At(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// Texts returns addresses as strings, as in objects.
func Texts(addrs []netip.Addr) []string {
	var all []string
	for _, a := range addrs {
		all = append(all, a.String())
	}
	return all
}

// Service returns Service number n. Its addresses follow from n.
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

// PortName returns the name that services and slices here use for the port of a protocol.
func PortName(p corev1.Protocol) string {
	if p == corev1.ProtocolTCP {
		return "t"
	}
	return "u"
}

// WithNodePort sets the node port of service number n on both ports.
func WithNodePort(n int) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].NodePort = int32(NodePortOf(n))
		}
	}
}

// Everywhere adds every kind of frontend to a service.
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

// Endpoint is an endpoint of a slice. It stands for both of the pod's addresses.
type Endpoint struct {
	Pod                         *lab.Pod
	Ready, Serving, Terminating bool
	Port                        uint16 // 0: ServerPort
}

// Up returns ready endpoints on pods.
func Up(pods ...*lab.Pod) []Endpoint { return UpAt(0, pods...) }

// UpAt returns ready endpoints on pods, at a port.
func UpAt(port uint16, pods ...*lab.Pod) []Endpoint {
	var all []Endpoint
	for _, p := range pods {
		all = append(all, Endpoint{Pod: p, Ready: true, Serving: true, Port: port})
	}
	return all
}

// Unready returns an endpoint that is neither ready nor serving.
func Unready(p *lab.Pod) Endpoint { return Endpoint{Pod: p} }

// Draining returns an endpoint that is terminating and still serving.
func Draining(p *lab.Pod) Endpoint { return Endpoint{Pod: p, Serving: true, Terminating: true} }

// SlicesOf returns the two slices of a service, one of each family.
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

// NewSlice returns a slice of a service without endpoints and ports.
func NewSlice(service, name string, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: family,
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}}
	s.Name, s.Namespace = name, "default"
	s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	return s
}
