// SPDX-License-Identifier: Apache-2.0

package coexist

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shunt/e2e/rig"
	"shunt/lab"
)

// takeOver starts shunt beside kube-proxy on a node of its own, and stops it again, while clients
// outside ask a Service by its node port. No request may fail or wait for a packet that is sent
// again: that takes a second.
func takeOver(s *scene) {
	n := s.service(rig.WithNodePort(s.number*3+s.index), func(svc *corev1.Service) {
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	})
	node := s.lab.Node("taken")
	s.reachAPI(s.T, node)
	// Many devices, as a node with VLANs has: the more there are, the longer attaching takes.
	wire := s.lab.Client("beside")
	for i := range 10 {
		node.Link(wire, fmt.Sprintf("link%d", i))
	}
	proxy := s.startKubeProxy(s.T, node, nftables)
	at := rig.At(node.Addr4(), rig.NodePortOf(n))
	s.expect("kube-proxy", s.becomes(s.outside, "tcp", at, s.web.Name()), s.web.Name())
	hammer := s.outside.StartHammer("tcp", at, lab.HammerOptions{Concurrency: 4, Duration: 30 * time.Second, Timeout: 5 * time.Second})
	c := &column{name: "taken", node: node}
	s.startShunt(s.T, c)
	time.Sleep(300 * time.Millisecond) // requests that began before the last program was attached end
	sum, err := hammer.Stop()
	must(s.T, err)
	if sum.Answered < 100 {
		s.Fatalf("%d requests are too few to show anything: %+v", sum.Answered, sum.Errors)
	}
	s.expect("failed requests", fmt.Sprint(sum.Done-sum.Answered), "0")
	s.expect("a request that waited", fmt.Sprint(sum.Total.Max > 900*time.Millisecond), "false")
	s.Logf("%d requests, the longest took %v; first error: %q", sum.Done, sum.Total.Max, sum.FirstError)
	_ = proxy.Stop(time.Second) // its end shows nothing
	s.expect("shunt alone", s.becomes(s.outside, "tcp", at, s.web.Name()), s.web.Name())
}
