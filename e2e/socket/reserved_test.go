// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"shunt/e2e/rig"
)

// TestReserved: a tenant's externalIPs name the node's own address, at the port of this
// daemon's probes and at a port of another daemon. The first is reserved, as the API
// server's is. The second goes to the tenant, as with kube-proxy, until externalIPs are
// disabled.
func TestReserved(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "--healthz-bind-address=0.0.0.0:10256")
	tenant := func(name string, n int, port int32) *corev1.Service {
		return rig.Service(name, n, func(s *corev1.Service) {
			s.Spec.ExternalIPs = rig.Texts([]netip.Addr{c.n1.Addr4(), c.n1.Addr6()})
			for i := range s.Spec.Ports {
				s.Spec.Ports[i].Port = port
			}
		})
	}
	c.apply(tenant("probes", 1, 10256), rig.SlicesOf("probes", rig.Up(c.web[0])...),
		tenant("kubelet", 2, 10250), rig.SlicesOf("kubelet", rig.Up(c.web[1])...))
	for i, a := range []netip.Addr{c.n1.Addr4(), c.n1.Addr6()} {
		ways[i].wantServers(t, c.client, rig.At(a, 10250), c.web[1])
		for _, from := range []string{"client", "host"} {
			pod := c.client
			if from == "host" {
				pod = c.host
			}
			if got := pod.Ask("tcp", rig.At(a, 10256)); got.Server == c.web[0].Name() {
				t.Errorf("from the %s: %v, where the daemon answers probes, is a tenant's pod", from, a)
			}
		}
	}
	if !strings.Contains(c.d.Log.String(), "shunt itself listens at 0.0.0.0:10256") {
		t.Error("the log does not say why")
	}
	c.d.Stop()
	c.d.Start("--external-ips=false")
	for _, a := range []netip.Addr{c.n1.Addr4(), c.n1.Addr6()} {
		rig.Eventually(t, "no externalIPs are served", func() bool {
			return c.client.Ask("tcp", rig.At(a, 10250)).Server != c.web[1].Name()
		})
	}
}
