// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"testing"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestKubeadmFile: a daemon serves with the file that kubeadm writes for kube-proxy. The
// file's clusterCIDR identifies pods of other nodes: with the policy Local they get all
// endpoints, unlike clients outside.
func TestKubeadmFile(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.d = rig.StartDaemon(t, c.n1, c.m.Path, "--config", "../../cmd/testdata/kubeadm.yaml")
	c.apply(rig.Service("web", 1, rig.Everywhere(1), rig.ExternalLocal), rig.SlicesOf("web", rig.Up(c.web...)...))
	outside, neighbour, router := c.Client("outside"), c.n2.Pod("neighbour"), c.n2.HostPod("router")
	outside.RouteVia(lab.ExternalCIDR4, c.n1)
	router.RouteVia(lab.ExternalCIDR4, c.n1)
	dst := rig.At(rig.BalancerIPs(1)[0], rig.ServicePort)
	for _, w := range []way{ways[0], ways[3]} {
		w.wantServers(t, c.client, rig.VIP(1, 4), c.web...)
		for from, want := range map[*lab.Pod][]*lab.Pod{outside: {c.web[0], c.web[2]}, neighbour: c.web} {
			c.askFromOutside(w, from, dst, want...)
		}
	}
}
