// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shunt/lab"
)

// rangesNode is a node of TestSourceRangesAsKubeProxy with its clients.
type rangesNode struct {
	*node
	pod, other, host *lab.Pod
}

func (w *world) rangesNode(t *testing.T, name string) *rangesNode {
	t.Helper()
	n := w.testNode(t, name)
	w.register(t, n)
	// kube-proxy takes the node's own addresses from here.
	made, err := w.api.CoreV1().Nodes().Get(t.Context(), n.Name(), metav1.GetOptions{})
	check(t, err)
	for _, a := range []netip.Addr{n.Addr4(), n.Addr6()} {
		made.Status.Addresses = append(made.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: a.String()})
	}
	_, err = w.api.CoreV1().Nodes().UpdateStatus(t.Context(), made, metav1.UpdateOptions{})
	check(t, err)
	return &rangesNode{node: n, pod: n.Pod("pod"), other: n.Pod("other"), host: n.HostPod("host")}
}

// whole returns ranges with exactly these addresses.
func whole(addrs ...netip.Addr) (ranges []string) {
	for _, a := range addrs {
		ranges = append(ranges, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return ranges
}

// TestSourceRangesAsKubeProxy: the real kube-proxy on one node and shunt on another admit
// the same pods and processes of their nodes to load-balancer IPs with source ranges.
func TestSourceRangesAsKubeProxy(t *testing.T) {
	w := setUp(t).in(t, "ranges")
	theirs, ours := w.rangesNode(t, "theirs"), w.rangesNode(t, "ours")
	nodes := []*rangesNode{theirs, ours}
	of := func(addrs func(*rangesNode) []netip.Addr) (ranges []string) {
		for _, n := range nodes {
			ranges = append(ranges, whole(addrs(n)...)...)
		}
		return ranges
	}
	nodeAddrs := func(n *rangesNode) []netip.Addr { return []netip.Addr{n.Addr4(), n.Addr6()} }
	podAddrs := func(n *rangesNode) []netip.Addr { return n.pod.Addrs() }
	cases := []struct {
		name   string
		ranges []string
		// local: the load-balancer IPs are addresses of the nodes, and so the source of
		// processes.
		local bool
	}{
		{"all", nil, false},
		{"pod", of(podAddrs), false},
		{"node", of(nodeAddrs), false},
		{"cluster", []string{lab.ClusterCIDR4.String(), lab.ClusterCIDR6.String()}, false},
		{"ipv4-only", of(func(n *rangesNode) []netip.Addr { return podAddrs(n)[:1] }), false},
		{"nobody", []string{"203.0.113.0/24", "2001:db8::/32"}, false},
		{"node-local", of(nodeAddrs), true},
		{"pod-local", of(podAddrs), true},
	}
	vips := func(i int) []netip.Addr {
		return []netip.Addr{netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", 60+i)), netip.MustParseAddr(fmt.Sprintf("fd00:198:51:100::%x", 0x600+i))}
	}
	targets := []discoveryv1.EndpointPort{target("t", v1.ProtocolTCP, 8000), target("u", v1.ProtocolUDP, 8000)}
	for i, c := range cases {
		w.create(c.name, []v1.ServicePort{tcp("t", 80), udp("u", 80)}, func(s *v1.Service) {
			s.Spec.Type, s.Spec.LoadBalancerSourceRanges = v1.ServiceTypeLoadBalancer, c.ranges
			s.Spec.IPFamilyPolicy = ptr(v1.IPFamilyPolicyRequireDualStack)
		})
		w.ingress(c.name, v1.LoadBalancerIngress{IP: vips(i)[0].String()}, v1.LoadBalancerIngress{IP: vips(i)[1].String()})
		w.createSlice(c.name, c.name+"-4", targets, v4(w.pods[0], w.pods[5]))
		w.createSlice(c.name, c.name+"-6", targets, v6(w.pods[0], w.pods[5]))
		for _, n := range nodes {
			for _, vip := range vips(i) {
				if c.local {
					n.AddAddr("lo", netip.PrefixFrom(vip, vip.BitLen()))
				}
			}
		}
	}
	w.startKubeProxy(t, theirs.node)
	d := w.runFor(t, daemonOptions{name: "ranges", node: ours.node})
	d.await(t, `"in effect"`)

	asks := func(from *lab.Pod, network string, vip netip.Addr) (answered bool) {
		a := from.Request(network, netip.AddrPortFrom(vip, 80), lab.RequestOptions{Timeout: 400 * time.Millisecond})
		return a.Err == nil
	}
	for _, n := range nodes { // both have programmed the first case, and so all of them
		for family := range 2 {
			eventually(t, n.Name()+" serves", func() error {
				if !asks(n.pod, "tcp", vips(0)[family]) || !asks(n.pod, "tcp", vips(1)[family]) {
					return fmt.Errorf("nobody answers")
				}
				return nil
			})
		}
	}
	let := 0
	for i, c := range cases {
		for family, vip := range vips(i) {
			for _, network := range []string{"tcp", "udp"} {
				for who, of := range map[string]func(*rangesNode) *lab.Pod{
					"pod": func(n *rangesNode) *lab.Pod { return n.pod }, "other": func(n *rangesNode) *lab.Pod { return n.other },
					"host": func(n *rangesNode) *lab.Pod { return n.host },
				} {
					want, got := asks(of(theirs), network, vip), asks(of(ours), network, vip)
					if want != got {
						t.Errorf("ranges %s, family %d, %s, asked by the %s: kube-proxy lets in: %v, shunt: %v", c.name, family, network, who, want, got)
					}
					if want {
						let++
					}
				}
			}
		}
	}
	t.Logf("kube-proxy lets in %d of %d", let, len(cases)*2*2*3)
	if let == 0 || let == len(cases)*2*2*3 {
		t.Error("kube-proxy makes no difference: nothing is shown")
	}
}
