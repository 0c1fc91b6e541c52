// SPDX-License-Identifier: Apache-2.0

package cleanup_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shunt/e2e/kube"
	"shunt/lab"
)

// nodeName is the name of the first node of every lab, and of the API's Node.
const nodeName = "n1"

// Addresses of the service web, the same in every lab.
const (
	web4 = "10.96.0.80"
	web6 = "fd00:10:96::80"
	port = 80
)

// makeObjects creates services of every kind that kube-proxy has rules for, with the pod's
// addresses as endpoints in both families. One has no endpoints.
func makeObjects(t *testing.T, cluster *kube.Cluster, node *lab.Node, pod *lab.Pod) {
	t.Helper()
	client, ctx := cluster.Client(), t.Context()
	n, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: node.Addr4().String()},
		{Type: corev1.NodeInternalIP, Address: node.Addr6().String()},
	}
	if _, err := client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	lb := service("lb", corev1.ServiceTypeLoadBalancer)
	lb.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24", "2001:db8::/32"}
	lb.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	lb.Spec.ExternalIPs = []string{"198.51.100.7"}
	sticky := service("sticky", corev1.ServiceTypeNodePort)
	sticky.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	web := service("web", corev1.ServiceTypeClusterIP)
	web.Spec.ClusterIP, web.Spec.ClusterIPs = web4, []string{web4, web6}
	for _, s := range []*corev1.Service{web, lb, sticky, service("empty", corev1.ServiceTypeNodePort)} {
		made, err := client.CoreV1().Services("default").Create(ctx, s, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Name == "empty" {
			continue
		}
		for _, slice := range slicesOf(s.Name, pod) {
			if _, err := client.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if s == lb {
			made.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.80"}, {IP: "fd00:198:51:100::80"}}
			if _, err := client.CoreV1().Services("default").UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func service(name string, kind corev1.ServiceType) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Type: kind, IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack),
			Ports: []corev1.ServicePort{
				{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: port},
				{Name: "udp", Protocol: corev1.ProtocolUDP, Port: port},
			},
		},
	}
}

func slicesOf(name string, pod *lab.Pod) []*discoveryv1.EndpointSlice {
	var all []*discoveryv1.EndpointSlice
	for _, addr := range pod.Addrs() {
		kind := discoveryv1.AddressTypeIPv4
		suffix := "-4"
		if addr.Is6() {
			kind, suffix = discoveryv1.AddressTypeIPv6, "-6"
		}
		all = append(all, &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: name + suffix, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: kind,
			Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{addr.String()}, NodeName: ptr.To(nodeName),
				Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
			}},
			Ports: []discoveryv1.EndpointPort{
				{Name: ptr.To("tcp"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](8080)},
				{Name: ptr.To("udp"), Protocol: ptr.To(corev1.ProtocolUDP), Port: ptr.To[int32](8080)},
			},
		})
	}
	return all
}
