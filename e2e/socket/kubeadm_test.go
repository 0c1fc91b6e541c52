package socket_test

import (
	"testing"

	"shunt/e2e/lab"
)

// TestKubeadmFile: a daemon with the file that kubeadm writes for kube-proxy serves,
// and knows the pods of other nodes by the file's clusterCIDR: with the policy Local
// they use all endpoints, as clients from outside do not.
func TestKubeadmFile(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.d = startDaemon(t, c.n1, c.m.path, "--config", "../../cmd/testdata/kubeadm.yaml")
	c.apply(service("web", 1, everywhere(1), externalLocal), slicesOf("web", up(c.web...)...))
	outside, neighbour, router := c.Client("outside"), c.n2.Pod("neighbour"), c.n2.HostPod("router")
	outside.RouteVia(lab.ExternalCIDR4, c.n1)
	router.RouteVia(lab.ExternalCIDR4, c.n1)
	dst := at(balancerIPs(1)[0], servicePort)
	for _, w := range []way{ways[0], ways[3]} {
		w.wantServers(t, c.client, vip(1, 4), c.web...)
		for from, want := range map[*lab.Pod][]*lab.Pod{outside: {c.web[0], c.web[2]}, neighbour: c.web} {
			c.askFromOutside(w, from, dst, want...)
		}
	}
}
