// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestServicePorts adds, renames, renumbers and removes ports, and changes their protocol.
func TestServicePorts(t *testing.T) {
	w := setUp(t).in(t, "ports")
	p := w.pods
	ip := w.create("web", []v1.ServicePort{tcp("http", 80)}).Spec.ClusterIP
	w.expect(t, w.namespace, fmt.Sprintf("web:http ClusterIP %s:80/TCP Cluster", ip))
	w.refused(w.client, "tcp", addr(ip, 80))
	w.createSlice("web", "web-1", []discoveryv1.EndpointPort{target("http", v1.ProtocolTCP, 8000), target("dns", v1.ProtocolUDP, 8001)}, v4(p[0], p[5]))
	http := fmt.Sprintf("web:http ClusterIP %s:80/TCP Cluster p0:8000 p5:8000", ip)
	w.expect(t, w.namespace, http)
	w.reach(w.client, "tcp", addr(ip, 80), "p0", "p5")
	w.refused(w.client, "tcp", addr(ip, 53))

	w.update("web", func(s *v1.Service) { s.Spec.Ports = append(s.Spec.Ports, udp("dns", 53), tcp("dns-tcp", 53)) })
	dns := fmt.Sprintf("web:dns ClusterIP %s:53/UDP Cluster p0:8001 p5:8001", ip)
	w.expect(t, w.namespace, http, dns, fmt.Sprintf("web:dns-tcp ClusterIP %s:53/TCP Cluster", ip))
	w.reach(w.client, "udp", addr(ip, 53), "p0", "p5")
	w.refused(w.client, "tcp", addr(ip, 53))

	// Ports are matched by name: a port with another name has no endpoints.
	w.update("web", func(s *v1.Service) { s.Spec.Ports[0].Name = "www" })
	w.expect(t, w.namespace, dns, fmt.Sprintf("web:dns-tcp ClusterIP %s:53/TCP Cluster", ip), fmt.Sprintf("web:www ClusterIP %s:80/TCP Cluster", ip))
	w.refused(w.client, "tcp", addr(ip, 80))
	w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) { s.Ports[0].Name = ptr("www") })
	www := fmt.Sprintf("web:www ClusterIP %s:80/TCP Cluster p0:8000 p5:8000", ip)
	w.expect(t, w.namespace, dns, fmt.Sprintf("web:dns-tcp ClusterIP %s:53/TCP Cluster", ip), www)
	w.reach(w.client, "tcp", addr(ip, 80), "p0", "p5")

	// Another number, target and protocol, and one port less, all at once.
	w.update("web", func(s *v1.Service) { s.Spec.Ports = []v1.ServicePort{udp("www", 80), tcp("dns", 81)} })
	w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) {
		s.Ports = []discoveryv1.EndpointPort{target("www", v1.ProtocolUDP, 8002), target("dns", v1.ProtocolTCP, 8003)}
	})
	w.expect(t, w.namespace, fmt.Sprintf("web:www ClusterIP %s:80/UDP Cluster p0:8002 p5:8002", ip),
		fmt.Sprintf("web:dns ClusterIP %s:81/TCP Cluster p0:8003 p5:8003", ip))
	w.reach(w.client, "udp", addr(ip, 80), "p0", "p5")
	w.reach(w.client, "tcp", addr(ip, 81), "p0", "p5")
	w.refused(w.client, "tcp", addr(ip, 80))
	w.refused(w.client, "udp", addr(ip, 53))

	// Two ports swap names: each address changes to the other one's endpoints in one step.
	w.update("web", func(s *v1.Service) { s.Spec.Ports = []v1.ServicePort{tcp("a", 80), tcp("b", 81)} })
	w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) {
		s.Ports = []discoveryv1.EndpointPort{target("a", v1.ProtocolTCP, 8004), target("b", v1.ProtocolTCP, 8005)}
	})
	w.update("web", func(s *v1.Service) { s.Spec.Ports = []v1.ServicePort{tcp("b", 80), tcp("a", 81)} })
	w.expect(t, w.namespace, fmt.Sprintf("web:b ClusterIP %s:80/TCP Cluster p0:8005 p5:8005", ip),
		fmt.Sprintf("web:a ClusterIP %s:81/TCP Cluster p0:8004 p5:8004", ip))
	w.expectFresh(t)

	w.remove("web")
	w.expect(t, w.namespace)
	w.unallocated(w.client, "tcp", addr(ip, 80))
	w.removeSlice("web-1")
	w.expectFresh(t)
}
