// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The servers. A name says where the server is and in which state.
const (
	Here     = "here"
	There    = "there"
	HereOld  = "here-old"
	ThereOld = "there-old"
	HereSick = "here-sick"
)

// ServerNames returns all servers, and whether each is on this node.
func ServerNames() map[string]bool {
	return map[string]bool{Here: true, There: false, HereOld: true, ThereOld: false, HereSick: true}
}

// Server is the location of a server.
type Server struct {
	Node  string
	Addrs []netip.Addr // IPv4 first
}

// The ports of every service and of every server, over both protocols.
const (
	ServicePort = 80
	ServerPort  = 8080
)

type endpoint struct {
	server                      string
	ready, serving, terminating bool
}

var (
	up   = func(server string) endpoint { return endpoint{server, true, true, false} }
	old  = func(server string) endpoint { return endpoint{server, false, true, true} }
	sick = func(server string) endpoint { return endpoint{server, false, false, false} }
)

var servers = map[Endpoints][]endpoint{
	None:        {sick(HereSick)},
	Local:       {up(Here)},
	Remote:      {up(There)},
	Both:        {up(Here), up(There)},
	Terminating: {old(HereOld), old(ThereOld)},
	Mixed:       {up(There), old(HereOld), sick(HereSick)},
}

// number returns a different number for each service, from 1 on: one for each pair of
// policies and endpoints.
func number(p Policies, e Endpoints) int {
	return 1 + slices.Index(AllPolicies, p)*len(AllEndpoints) + slices.Index(AllEndpoints, e)
}

// addrs returns the addresses of a kind of frontend, IPv4 first, in ranges that the lab
// reserves for services.
func addrs(f Frontend, n int) []netip.Addr {
	v4, v6 := "10.96.7.%d", "fd00:10:96::7%02x"
	switch f {
	case LoadBalancerIP:
		v4, v6 = "198.51.100.%d", "fd00:198:51:100::%x"
	case ExternalIP:
		v4, v6 = "198.51.100.%d", "fd00:198:51:100::%x"
		n += 100
	}
	return []netip.Addr{netip.MustParseAddr(fmt.Sprintf(v4, n)), netip.MustParseAddr(fmt.Sprintf(v6, n))}
}

func nodePort(n int) uint16 { return uint16(31000 + n) }

// Dst returns the destination of the case's client, in a family (4 or 6). node is this
// node's addresses, IPv4 first.
func (c Case) Dst(family int, node []netip.Addr) netip.AddrPort {
	n := number(c.Policies, c.Endpoints)
	if c.Frontend == NodePort {
		return netip.AddrPortFrom(node[family/5], nodePort(n))
	}
	return netip.AddrPortFrom(addrs(c.Frontend, n)[family/5], ServicePort)
}

// Objects returns the Services of all cases, and their EndpointSlices.
func Objects(at map[string]Server) []any {
	var all []any
	for _, p := range AllPolicies {
		for _, e := range AllEndpoints {
			svc := newService(p, e)
			all = append(all, svc)
			for _, s := range newSlices(svc.Name, servers[e], at) {
				all = append(all, s)
			}
		}
	}
	return all
}

func newService(p Policies, e Endpoints) *corev1.Service {
	n := number(p, e)
	s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}
	s.Name, s.Namespace = fmt.Sprintf("%s-%s", p, e), "default"
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	for _, a := range addrs(ClusterIP, n) {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.String())
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	for _, a := range addrs(ExternalIP, n) {
		s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, a.String())
	}
	for _, a := range addrs(LoadBalancerIP, n) {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
	}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: portName(protocol), Protocol: protocol,
			Port: ServicePort, NodePort: int32(nodePort(n))})
	}
	switch p {
	case ExternalLocal:
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	case InternalLocal:
		local := corev1.ServiceInternalTrafficPolicyLocal
		s.Spec.InternalTrafficPolicy = &local
	}
	return s
}

func portName(p corev1.Protocol) string {
	if p == corev1.ProtocolTCP {
		return "t"
	}
	return "u"
}

// newSlices returns a slice of each family.
func newSlices(service string, endpoints []endpoint, at map[string]Server) []*discoveryv1.EndpointSlice {
	var all []*discoveryv1.EndpointSlice
	for i, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		s := &discoveryv1.EndpointSlice{AddressType: family,
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}}
		s.Name, s.Namespace = fmt.Sprintf("%s-v%d", service, 4+2*i), "default"
		s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
		for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
			name, port := portName(protocol), int32(ServerPort)
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port})
		}
		for _, e := range endpoints {
			where := at[e.server]
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{where.Addrs[i].String()}, NodeName: &where.Node,
				Conditions: discoveryv1.EndpointConditions{Ready: &e.ready, Serving: &e.serving, Terminating: &e.terminating}})
		}
		all = append(all, s)
	}
	return all
}
