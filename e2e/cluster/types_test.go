// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

var onePort = []discoveryv1.EndpointPort{target("", v1.ProtocolTCP, 8000)}

// TestServiceTypes changes a service to every type that the API allows.
func TestServiceTypes(t *testing.T) {
	w := setUp(t).in(t, "types")
	p := w.pods
	node, loop := w.n1.Addr4().String(), "127.0.0.1"
	ip := w.create("web", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("web", "web-1", onePort, v4(p[1], p[6]))
	clusterIP := func(ip string) string {
		return fmt.Sprintf("web ClusterIP %s:80/TCP Cluster p1:8000 p6:8000", host(ip))
	}
	w.expect(t, w.namespace, clusterIP(ip))

	np := nodePort(w.update("web", func(s *v1.Service) { s.Spec.Type = v1.ServiceTypeNodePort }))
	atNode := fmt.Sprintf("web NodePort *:%d/TCP IPv4 Cluster p1:8000 p6:8000", np)
	w.expect(t, w.namespace, clusterIP(ip), atNode)
	for _, to := range []string{ip, node} {
		w.reach(w.client, "tcp", addr(to, map[bool]uint16{true: 80, false: np}[to == ip]), "p1", "p6")
	}
	w.reach(w.host, "tcp", addr(loop, np), "p1", "p6")

	w.update("web", func(s *v1.Service) { s.Spec.Type = v1.ServiceTypeLoadBalancer })
	w.expect(t, w.namespace, clusterIP(ip), atNode) // no address yet
	const vip, hop = "198.51.100.10", "198.51.100.11"
	w.ingress("web", v1.LoadBalancerIngress{IP: vip}, v1.LoadBalancerIngress{Hostname: "lb.example"},
		v1.LoadBalancerIngress{IP: hop, IPMode: ptr(v1.LoadBalancerIPModeProxy)})
	atVIP := fmt.Sprintf("web LoadBalancerIP %s:80/TCP Cluster p1:8000 p6:8000", vip)
	w.expect(t, w.namespace, clusterIP(ip), atNode, atVIP)
	w.reach(w.client, "tcp", addr(vip, 80), "p1", "p6")
	w.silent(w.client, "tcp", addr(hop, 80)) // ipMode Proxy: not served by shunt
	w.ingress("web", v1.LoadBalancerIngress{IP: vip, IPMode: ptr(v1.LoadBalancerIPModeProxy)},
		v1.LoadBalancerIngress{IP: hop, IPMode: ptr(v1.LoadBalancerIPModeVIP)})
	w.expect(t, w.namespace, clusterIP(ip), atNode, fmt.Sprintf("web LoadBalancerIP %s:80/TCP Cluster p1:8000 p6:8000", hop))
	w.reach(w.client, "tcp", addr(hop, 80), "p1", "p6")
	w.silent(w.client, "tcp", addr(vip, 80))
	w.ingress("web")
	w.expect(t, w.namespace, clusterIP(ip), atNode)
	w.expectFresh(t)

	w.update("web", func(s *v1.Service) {
		s.Spec.Type, s.Spec.ExternalName = v1.ServiceTypeExternalName, "web.example"
		s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.Ports[0].NodePort = "", nil, 0
	})
	w.expect(t, w.namespace)
	w.unallocated(w.client, "tcp", addr(ip, 80))
	w.refused(w.client, "tcp", addr(node, np)) // the node has no server there

	w.update("web", func(s *v1.Service) {
		s.Spec.Type, s.Spec.ExternalName, s.Spec.ClusterIP = v1.ServiceTypeClusterIP, "", "None"
	})
	w.expect(t, w.namespace) // headless
	w.update("web", func(s *v1.Service) {
		s.Spec.Type, s.Spec.ExternalName = v1.ServiceTypeExternalName, "web.example"
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil
	})
	ip = w.update("web", func(s *v1.Service) { s.Spec.Type, s.Spec.ExternalName = v1.ServiceTypeClusterIP, "" }).Spec.ClusterIP
	w.expect(t, w.namespace, clusterIP(ip))
	w.reach(w.client, "tcp", addr(ip, 80), "p1", "p6")
	w.expectFresh(t)
}

func nodePort(s *v1.Service) uint16 { return uint16(s.Spec.Ports[0].NodePort) }

// TestExternalIPs creates two services with the same external IP: the older one has it, then the
// younger one when the older one drops it. The address is served all the time.
func TestExternalIPs(t *testing.T) {
	w := setUp(t).in(t, "external")
	const ext, ext6 = "198.51.100.20", "fd00:198:51:100::20"
	external := func(ips ...string) func(*v1.Service) {
		return func(s *v1.Service) { s.Spec.ExternalIPs = ips }
	}
	at := func(name, ip, pods string) string {
		return fmt.Sprintf("%s ExternalIP %s:80/TCP Cluster %s", name, host(ip), pods)
	}
	own := func(name, ip, pods string) string {
		return fmt.Sprintf("%s ClusterIP %s:80/TCP Cluster %s", name, host(ip), pods)
	}
	// An IPv6 address of an IPv4 service: an event reports it, and the rest works.
	a := w.create("a", []v1.ServicePort{tcp("", 80)}, external(ext, ext6)).Spec.ClusterIP
	w.createSlice("a", "a-1", onePort, v4(w.pods[0]))
	w.expect(t, w.namespace, own("a", a, "p0:8000"), at("a", ext, "p0:8000"))
	w.event(v1.EventTypeWarning, "KubeProxyIncorrectIPVersion", "Service", "a")
	w.reach(w.client, "tcp", addr(ext, 80), "p0")
	w.awaitNextSecond("a") // creationTimestamp decides, and its unit is a second
	b := w.create("b", []v1.ServicePort{tcp("", 80)}, external(ext)).Spec.ClusterIP
	w.createSlice("b", "b-1", onePort, v4(w.pods[1]))
	w.expect(t, w.namespace, own("a", a, "p0:8000"), at("a", ext, "p0:8000"), own("b", b, "p1:8000"))
	w.reach(w.client, "tcp", addr(ext, 80), "p0")
	w.expectFresh(t)

	w.update("a", external())
	w.expect(t, w.namespace, own("a", a, "p0:8000"), own("b", b, "p1:8000"), at("b", ext, "p1:8000"))
	w.reach(w.client, "tcp", addr(ext, 80), "p1")
	w.update("a", external(ext))
	w.expect(t, w.namespace, own("a", a, "p0:8000"), at("a", ext, "p0:8000"), own("b", b, "p1:8000"))
	w.remove("a")
	w.expect(t, w.namespace, own("b", b, "p1:8000"), at("b", ext, "p1:8000"))
	w.reach(w.client, "tcp", addr(ext, 80), "p1")
	w.expectFresh(t)
}

// TestPolicies changes traffic policies, affinity, and its timeout.
func TestPolicies(t *testing.T) {
	w := setUp(t).in(t, "policies")
	local, far := w.pods[0], w.pods[5]
	s := w.create("web", []v1.ServicePort{tcp("", 80)}, func(s *v1.Service) { s.Spec.Type = v1.ServiceTypeNodePort })
	ip, np := s.Spec.ClusterIP, nodePort(s)
	w.createSlice("web", "web-1", onePort, v4(local, far))
	both, here := "Cluster p0:8000 p5:8000", "Local p0:8000"
	expect := func(affinity, inside, outside string) {
		t.Helper()
		w.expect(t, w.namespace, fmt.Sprintf("web ClusterIP %s:80/TCP%s %s", ip, affinity, inside),
			fmt.Sprintf("web NodePort *:%d/TCP IPv4%s %s", np, affinity, outside))
	}
	expect("", both, both)
	internal := func(p v1.ServiceInternalTrafficPolicy) {
		w.update("web", func(s *v1.Service) { s.Spec.InternalTrafficPolicy = &p })
	}
	external := func(p v1.ServiceExternalTrafficPolicy) {
		w.update("web", func(s *v1.Service) { s.Spec.ExternalTrafficPolicy = p })
	}
	internal(v1.ServiceInternalTrafficPolicyLocal)
	expect("", here, both)
	w.reach(w.client, "tcp", addr(ip, 80), "p0")
	w.reach(w.client, "tcp", addr(w.n1.Addr4().String(), np), "p0", "p5")
	external(v1.ServiceExternalTrafficPolicyLocal)
	expect("", here, both+" | "+here)
	w.reach(w.client, "tcp", addr(w.n1.Addr4().String(), np), "p0", "p5") // a client on this node
	internal(v1.ServiceInternalTrafficPolicyCluster)
	expect("", both, both+" | "+here)
	w.reach(w.client, "tcp", addr(ip, 80), "p0", "p5")

	// Without an endpoint here, packets are dropped, not refused, for policy Local.
	internal(v1.ServiceInternalTrafficPolicyLocal)
	w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) { s.Endpoints = v4(far) })
	expect("", "Local", "Cluster p5:8000 | Local")
	if a := w.client.Ask("tcp", addr(ip, 80)); a.Err == nil {
		t.Errorf("answered by %s, though the policy is Local and no endpoint is here", a.Server)
	}
	internal(v1.ServiceInternalTrafficPolicyCluster)
	external(v1.ServiceExternalTrafficPolicyCluster)
	w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) { s.Endpoints = v4(local, far) })
	expect("", both, both)

	w.update("web", func(s *v1.Service) { s.Spec.SessionAffinity = v1.ServiceAffinityClientIP })
	expect(" affinity=10800s", both, both)
	first := w.client.Ask("tcp", addr(ip, 80))
	check(t, first.Err)
	for range 20 {
		w.reach(w.client, "tcp", addr(ip, 80), first.Server)
	}
	w.update("web", func(s *v1.Service) { s.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds = ptr(int32(60)) })
	expect(" affinity=60s", both, both)
	w.reach(w.client, "tcp", addr(ip, 80), first.Server)
	w.expectFresh(t)
	w.update("web", func(s *v1.Service) {
		s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = v1.ServiceAffinityNone, nil
	})
	expect("", both, both)
	w.reach(w.client, "tcp", addr(ip, 80), "p0", "p5")
	w.expectFresh(t)
}

// TestFamilies changes a single-stack service to dual-stack and back, and has an IPv6 one.
func TestFamilies(t *testing.T) {
	w := setUp(t).in(t, "families")
	p := w.pods
	line := func(name, ip, pods string) string {
		return fmt.Sprintf("%s ClusterIP %s:80/TCP Cluster %s", name, host(ip), pods)
	}
	ip4 := w.create("web", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("web", "web-4", onePort, v4(p[2], p[7]))
	w.createSlice("web", "web-6", onePort, v6(p[3], p[8]))
	w.expect(t, w.namespace, line("web", ip4, "p2:8000 p7:8000"))
	ips := w.update("web", func(s *v1.Service) {
		s.Spec.IPFamilyPolicy = ptr(v1.IPFamilyPolicyRequireDualStack)
	}).Spec.ClusterIPs
	w.expect(t, w.namespace, line("web", ip4, "p2:8000 p7:8000"), line("web", ips[1], "p3:8000 p8:8000"))
	w.reach(w.client, "tcp4", addr(ip4, 80), "p2", "p7")
	w.reach(w.client, "tcp6", addr(ips[1], 80), "p3", "p8")
	w.reach(w.client, "tcp6", addr(ip4, 80), "p2", "p7") // v4-mapped
	w.expectFresh(t)
	w.update("web", func(s *v1.Service) {
		s.Spec.IPFamilyPolicy, s.Spec.ClusterIPs = ptr(v1.IPFamilyPolicySingleStack), s.Spec.ClusterIPs[:1]
		s.Spec.IPFamilies = s.Spec.IPFamilies[:1]
	})
	w.expect(t, w.namespace, line("web", ip4, "p2:8000 p7:8000"))
	w.unallocated(w.client, "tcp6", addr(ips[1], 80))

	s := w.create("six", []v1.ServicePort{tcp("", 80)}, func(s *v1.Service) {
		s.Spec.Type, s.Spec.IPFamilies = v1.ServiceTypeNodePort, []v1.IPFamily{v1.IPv6Protocol}
	})
	w.createSlice("six", "six-6", onePort, v6(p[4], p[9]))
	w.createSlice("six", "six-4", onePort, v4(p[4])) // in a family that the service does not have
	np := nodePort(s)
	w.expect(t, w.namespace, line("web", ip4, "p2:8000 p7:8000"), line("six", s.Spec.ClusterIP, "p4:8000 p9:8000"),
		fmt.Sprintf("six NodePort *:%d/TCP IPv6 Cluster p4:8000 p9:8000", np))
	w.reach(w.client, "tcp6", addr(s.Spec.ClusterIP, 80), "p4", "p9")
	w.reach(w.host, "tcp6", addr("::1", np), "p4", "p9")
	w.refused(w.host, "tcp4", addr("127.0.0.1", np))
	w.expectFresh(t)
}

// TestServiceAgain deletes services and creates them again with the same cluster IP, with
// the same and with another name, and once so fast that it may look like a change.
func TestServiceAgain(t *testing.T) {
	w := setUp(t).in(t, "again")
	withIP := func(ip string) func(*v1.Service) { return func(s *v1.Service) { s.Spec.ClusterIP = ip } }
	ip := w.create("web", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("web", "web-1", onePort, v4(w.pods[0]))
	w.createSlice("other", "other-1", onePort, v4(w.pods[1]))
	line := func(name, pods string) string {
		return fmt.Sprintf("%s ClusterIP %s:80/TCP Cluster %s", name, ip, pods)
	}
	w.expect(t, w.namespace, line("web", "p0:8000"))
	for range 10 {
		w.remove("web")
		w.create("web", []v1.ServicePort{tcp("", 80)}, withIP(ip))
		w.expect(t, w.namespace, line("web", "p0:8000"))
		w.remove("web")
		w.create("other", []v1.ServicePort{tcp("", 80)}, withIP(ip))
		w.expect(t, w.namespace, line("other", "p1:8000"))
		w.reach(w.client, "tcp", addr(ip, 80), "p1")
		w.remove("other")
		w.create("web", []v1.ServicePort{tcp("", 80)}, withIP(ip))
	}
	w.expect(t, w.namespace, line("web", "p0:8000"))
	w.reach(w.client, "tcp", addr(ip, 80), "p0")
	w.expectFresh(t)
}
