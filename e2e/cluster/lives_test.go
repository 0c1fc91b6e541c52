// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// TestEveryTypeChange changes a service from each type to each other, in a walk with every
// pair once: the frontends of the new type exist, and those of the old one do not.
func TestEveryTypeChange(t *testing.T) {
	w := setUp(t).in(t, "turns")
	const vip, name = "198.51.100.30", "web.example"
	s := w.create("web", []v1.ServicePort{tcp("", 80)})
	w.createSlice("web", "web-1", onePort, v4(w.pods[1], w.pods[6]))
	lastIP, lastPort := s.Spec.ClusterIP, uint16(0)
	for i, to := range []v1.ServiceType{v1.ServiceTypeNodePort, v1.ServiceTypeLoadBalancer, v1.ServiceTypeExternalName,
		v1.ServiceTypeClusterIP, v1.ServiceTypeLoadBalancer, v1.ServiceTypeNodePort, v1.ServiceTypeExternalName,
		v1.ServiceTypeNodePort, v1.ServiceTypeClusterIP, v1.ServiceTypeExternalName, v1.ServiceTypeLoadBalancer, v1.ServiceTypeClusterIP} {
		was := s.Spec.Type
		s = w.update("web", func(s *v1.Service) {
			s.Spec.Type, s.Spec.ExternalName = to, ""
			switch to {
			case v1.ServiceTypeExternalName:
				s.Spec.ExternalName = name
				s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.Ports[0].NodePort = "", nil, 0
			case v1.ServiceTypeClusterIP:
				s.Spec.Ports[0].NodePort = 0
			}
		})
		var want []string
		ip, port := s.Spec.ClusterIP, nodePort(s)
		if to != v1.ServiceTypeExternalName {
			want = append(want, fmt.Sprintf("web ClusterIP %s:80/TCP Cluster p1:8000 p6:8000", ip))
		}
		if port != 0 {
			want = append(want, fmt.Sprintf("web NodePort *:%d/TCP IPv4 Cluster p1:8000 p6:8000", port))
		}
		if to == v1.ServiceTypeLoadBalancer {
			w.ingress("web", v1.LoadBalancerIngress{IP: vip})
			want = append(want, fmt.Sprintf("web LoadBalancerIP %s:80/TCP Cluster p1:8000 p6:8000", vip))
		}
		t.Logf("%d: from %s to %s", i, was, to)
		w.expect(t, w.namespace, want...)
		node := w.n1.Addr4().String()
		if to == v1.ServiceTypeExternalName {
			w.unallocated(w.client, "tcp", addr(lastIP, 80))
		} else {
			w.reach(w.client, "tcp", addr(ip, 80), "p1", "p6")
			lastIP = ip
		}
		if port != 0 {
			w.reach(w.client, "tcp", addr(node, port), "p1", "p6")
			lastPort = port
		} else if lastPort != 0 {
			w.refused(w.client, "tcp", addr(node, lastPort))
		}
		if to == v1.ServiceTypeLoadBalancer {
			w.reach(w.client, "tcp", addr(vip, 80), "p1", "p6")
		} else {
			w.silent(w.client, "tcp", addr(vip, 80))
		}
	}
	w.expectFresh(t)
}
