// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestRefuse asks in every way for frontends without endpoints, and must get an error at
// once that distinguishes the cases.
func TestRefuse(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(
		rig.Service("empty", 1, rig.Everywhere(1)), rig.SlicesOf("empty"),
		rig.Service("bare", 2), // not even a slice
		rig.Service("unready", 3), rig.SlicesOf("unready", rig.Unready(c.web[0])),
		rig.Service("web", 4), rig.SlicesOf("web", rig.Up(c.web[0])...),
		rig.Service("away", 5, rig.InternalLocal), rig.SlicesOf("away", rig.Up(c.web[1])...),
		rig.Service("nowhere", 6, rig.InternalLocal), rig.SlicesOf("nowhere"),
		rig.Service("outlocal", 7, rig.Everywhere(7), rig.ExternalLocal, rig.InternalLocal), rig.SlicesOf("outlocal", rig.Up(c.web[1])...),
		rig.Service("outempty", 8, rig.Everywhere(8), rig.ExternalLocal), rig.SlicesOf("outempty"),
	)
	node := []netip.Addr{c.n1.Addr4(), c.n1.Addr6()}
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for _, test := range []struct {
		name   string
		addrs  []netip.Addr
		port   uint16
		want   syscall.Errno
		reason string
		host   bool // only from the node
	}{
		{"no endpoint, cluster IP", rig.ClusterIPs(1), rig.ServicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"no endpoint, node port", node, rig.NodePortOf(1), syscall.ECONNREFUSED, "no_endpoint", false},
		{"no endpoint, node port on loopback", loopback, rig.NodePortOf(1), syscall.ECONNREFUSED, "no_endpoint", true},
		{"no endpoint, load-balancer IP", rig.BalancerIPs(1), rig.ServicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"no endpoint, external IP", rig.ExternalIPs(1), rig.ServicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"no slice", rig.ClusterIPs(2), rig.ServicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"no ready endpoint", rig.ClusterIPs(3), rig.ServicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"undefined port", rig.ClusterIPs(4), rig.ServicePort + 1, syscall.ECONNREFUSED, "undefined_port", false},
		{"undefined port of an empty service", rig.ClusterIPs(1), rig.ServicePort + 1, syscall.ECONNREFUSED, "undefined_port", false},
		{"internal policy Local, endpoints elsewhere", rig.ClusterIPs(5), rig.ServicePort, syscall.EHOSTUNREACH, "no_local_endpoint", false},
		{"internal policy Local, no endpoint", rig.ClusterIPs(6), rig.ServicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"external policy Local, no endpoint, node port", node, rig.NodePortOf(8), syscall.ECONNREFUSED, "no_endpoint", false},
		{"external policy Local, no endpoint, load-balancer IP", rig.BalancerIPs(8), rig.ServicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"both policies Local, endpoints elsewhere, cluster IP", rig.ClusterIPs(7), rig.ServicePort, syscall.EHOSTUNREACH, "no_local_endpoint", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.host {
				rig.NeedOwnNetns(t)
			}
			before := c.d.Reasons()[test.reason]
			asked := uint64(0)
			for _, from := range []*lab.Pod{c.client, c.host} {
				if test.host && from != c.host {
					continue
				}
				for _, w := range ways {
					w.wantErrno(t, from, rig.At(w.of(test.addrs), test.port), test.want)
					asked++
				}
			}
			if counted := c.d.Reasons()[test.reason] - before; counted != asked {
				t.Errorf("%d of %d were counted as %s", counted, asked, test.reason)
			}
		})
	}
	t.Run("external policy Local is not for clients of this node", func(t *testing.T) {
		for _, w := range ways {
			for _, from := range []*lab.Pod{c.client, c.host} {
				w.wantServers(t, from, rig.At(w.of(node), rig.NodePortOf(7)), c.web[1])
				w.wantServers(t, from, rig.At(w.of(rig.BalancerIPs(7)), rig.ServicePort), c.web[1])
			}
		}
	})
}

// TestLocal: with the policy Local only the endpoints of this node are used, as long as
// there are any.
func TestLocal(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1, rig.InternalLocal, rig.ExternalLocal, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.web...)...))
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[0], c.web[2])
		w.wantServers(t, c.client, rig.At(w.of(rig.BalancerIPs(1)), rig.ServicePort), c.web...)
	}
	c.apply(rig.SlicesOf("web", rig.Up(c.web[1], c.web[2])...))
	for _, w := range ways {
		w.wantServers(t, c.host, rig.VIP(1, w.family), c.web[2])
	}
	c.apply(rig.SlicesOf("web", rig.Up(c.web[1])...))
	for _, w := range ways {
		w.wantErrno(t, c.host, rig.VIP(1, w.family), syscall.EHOSTUNREACH)
	}
	noLocal := `kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=%q,traffic_policy=%q}`
	metrics := c.d.Metrics()
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, policy := range []string{"internal", "external"} {
			if got := metrics[fmt.Sprintf(noLocal, family, policy)]; got != 2 { // the service's two ports
				t.Errorf("no_local_endpoints_total of %s, %s: %v, want 2", family, policy, got)
			}
		}
	}
}

// TestRefusedReconnect: a refused connect() leaves a connected UDP socket as it was, with
// the same peer.
func TestRefusedReconnect(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...), rig.Service("empty", 2), rig.SlicesOf("empty"))
	for _, w := range ways[3:6] {
		k := w.openTo(t, c.client, rig.VIP(1, w.family))
		k.ask(rig.VIP(1, w.family))
		if err := k.Connect(rig.VIP(2, w.family)); err == nil {
			t.Fatalf("%s: connected to a service without endpoints", w)
		}
		k.wantKept(rig.VIP(1, w.family), "web-0")
	}
}
