// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
)

func (w *world) updateNode(name string, change func(*v1.Node)) {
	w.t.Helper()
	nodes := w.api.CoreV1().Nodes()
	check(w.t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		n, err := nodes.Get(w.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(n)
		_, err = nodes.Update(w.t.Context(), n, metav1.UpdateOptions{})
		return err
	}))
}

// TestNode changes the zone of the daemon's own Node, marks it for deletion as the
// autoscaler does, deletes it, and creates it again.
func TestNode(t *testing.T) {
	t.Parallel()
	w := setUp(t).in(t, "node")
	n := w.testNode(t, "zoned")
	client := n.Pod("client")
	ip := w.create("web", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("web", "web-1", onePort, v4(w.pods[0], w.pods[1], w.pods[2]), func(s *discoveryv1.EndpointSlice) {
		for i, zone := range []string{"zone-a", "zone-b", "zone-b"} {
			s.Endpoints[i].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
		}
	})
	d := w.runFor(t, daemonOptions{name: "zoned", node: n, healthz: "127.0.0.1:10256"})
	expect := func(pods ...string) {
		t.Helper()
		line := fmt.Sprintf("web ClusterIP %s:80/TCP Cluster %s:8000", ip, strings.Join(pods, ":8000 "))
		w.expectOf(t, d.o.root, w.namespace, line)
		w.reach(client, "tcp", addr(ip, 80), pods...)
	}
	d.await(t, "there is no Node of this name")
	d.await(t, `"in effect"`)
	expect("p0", "p1", "p2") // the zone is not known: hints are ignored
	d.answers(t, "/healthz", 503, "this Node was not seen yet")
	d.answers(t, "/livez", 200, "lastUpdated")

	w.register(t, n)
	expect("p0")
	d.answers(t, "/healthz", 200, `"nodeEligible":true`)
	setZone := func(zone string) {
		w.updateNode(n.Name(), func(n *v1.Node) { n.Labels[v1.LabelTopologyZone] = zone })
	}
	setZone("zone-b")
	expect("p1", "p2")
	setZone("zone-c")
	expect("p0", "p1", "p2") // no endpoint has a hint for this zone
	setZone("zone-a")
	expect("p0")
	w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) { // a node hint takes precedence over a zone hint
		for i, node := range []string{"other", n.Name(), "other"} {
			s.Endpoints[i].Hints.ForNodes = []discoveryv1.ForNode{{Name: node}}
		}
	})
	expect("p1")
	w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) {
		for i := range s.Endpoints {
			s.Endpoints[i].Hints.ForNodes = nil
		}
	})
	expect("p0")
	w.updateNode(n.Name(), func(n *v1.Node) { delete(n.Labels, v1.LabelTopologyZone) })
	expect("p0", "p1", "p2")
	w.drain(d)
}

// drain removes the node, by every method, and checks what load balancers and the kubelet
// see.
func (w *world) drain(d *daemon) {
	w.t.Helper()
	t, name := w.t, d.o.nodeName
	w.updateNode(name, func(n *v1.Node) {
		n.Spec.Taints = []v1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Value: "1", Effect: v1.TaintEffectNoSchedule}}
	})
	d.answers(t, "/healthz", 503, "ToBeDeletedByClusterAutoscaler")
	d.answers(t, "/healthz", 503, `"nodeEligible":false`)
	d.answers(t, "/livez", 200, "lastUpdated")
	w.updateNode(name, func(n *v1.Node) { n.Spec.Taints = nil })
	d.answers(t, "/healthz", 200, `"nodeEligible":true`)

	w.updateNode(name, func(n *v1.Node) { n.Finalizers = []string{"test.example/kept"} })
	check(t, w.api.CoreV1().Nodes().Delete(t.Context(), name, metav1.DeleteOptions{}))
	d.answers(t, "/healthz", 503, "is being deleted")
	d.answers(t, "/livez", 200, "lastUpdated")
	w.updateNode(name, func(n *v1.Node) { n.Finalizers = nil })
	d.answers(t, "/healthz", 503, "is gone from it")
	d.answers(t, "/livez", 200, "lastUpdated")
	w.register(t, d.o.node)
	d.answers(t, "/healthz", 200, `"nodeEligible":true`)
}
