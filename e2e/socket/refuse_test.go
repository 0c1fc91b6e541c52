package socket_test

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"shunt/e2e/lab"
)

// TestRefuse asks in every way for what nobody serves, and wants to hear of it at
// once, in the words that tell one case from the other.
func TestRefuse(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(
		service("empty", 1, everywhere(1)), slicesOf("empty"),
		service("bare", 2), // not even a slice
		service("unready", 3), slicesOf("unready", unready(c.web[0])),
		service("web", 4), slicesOf("web", up(c.web[0])...),
		service("away", 5, internalLocal), slicesOf("away", up(c.web[1])...),
		service("nowhere", 6, internalLocal), slicesOf("nowhere"),
		service("outlocal", 7, everywhere(7), externalLocal, internalLocal), slicesOf("outlocal", up(c.web[1])...),
		service("outempty", 8, everywhere(8), externalLocal), slicesOf("outempty"),
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
		{"no endpoint, cluster IP", clusterIPs(1), servicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"no endpoint, node port", node, nodePortOf(1), syscall.ECONNREFUSED, "no_endpoint", false},
		{"no endpoint, node port on loopback", loopback, nodePortOf(1), syscall.ECONNREFUSED, "no_endpoint", true},
		{"no endpoint, load-balancer IP", balancerIPs(1), servicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"no endpoint, external IP", externalIPs(1), servicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"no slice", clusterIPs(2), servicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"no ready endpoint", clusterIPs(3), servicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"undefined port", clusterIPs(4), servicePort + 1, syscall.ECONNREFUSED, "undefined_port", false},
		{"undefined port of an empty service", clusterIPs(1), servicePort + 1, syscall.ECONNREFUSED, "undefined_port", false},
		{"internal policy Local, endpoints elsewhere", clusterIPs(5), servicePort, syscall.EHOSTUNREACH, "no_local_endpoint", false},
		{"internal policy Local, no endpoint", clusterIPs(6), servicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"external policy Local, no endpoint, node port", node, nodePortOf(8), syscall.ECONNREFUSED, "no_endpoint", false},
		{"external policy Local, no endpoint, load-balancer IP", balancerIPs(8), servicePort, syscall.ECONNREFUSED, "no_endpoint", false},
		{"both policies Local, endpoints elsewhere, cluster IP", clusterIPs(7), servicePort, syscall.EHOSTUNREACH, "no_local_endpoint", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := c.d.reasons()[test.reason]
			asked := uint64(0)
			for _, from := range []*lab.Pod{c.client, c.host} {
				if test.host && from != c.host {
					continue
				}
				for _, w := range ways {
					w.wantErrno(t, from, at(w.of(test.addrs), test.port), test.want)
					asked++
				}
			}
			if counted := c.d.reasons()[test.reason] - before; counted != asked {
				t.Errorf("%d of %d were counted as %s", counted, asked, test.reason)
			}
		})
	}
	t.Run("external policy Local is not for clients of this node", func(t *testing.T) {
		for _, w := range ways {
			for _, from := range []*lab.Pod{c.client, c.host} {
				w.wantServers(t, from, at(w.of(node), nodePortOf(7)), c.web[1])
				w.wantServers(t, from, at(w.of(balancerIPs(7)), servicePort), c.web[1])
			}
		}
	})
}

// TestLocal: with the policy Local the endpoints of this node are used alone, as
// long as there are any.
func TestLocal(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(service("web", 1, internalLocal, externalLocal, everywhere(1)), slicesOf("web", up(c.web...)...))
	for _, w := range ways {
		w.wantServers(t, c.client, vip(1, w.family), c.web[0], c.web[2])
		w.wantServers(t, c.client, at(w.of(balancerIPs(1)), servicePort), c.web...)
	}
	c.apply(slicesOf("web", up(c.web[1], c.web[2])...))
	for _, w := range ways {
		w.wantServers(t, c.host, vip(1, w.family), c.web[2])
	}
	c.apply(slicesOf("web", up(c.web[1])...))
	for _, w := range ways {
		w.wantErrno(t, c.host, vip(1, w.family), syscall.EHOSTUNREACH)
	}
	noLocal := `kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=%q,traffic_policy=%q}`
	metrics := c.d.metrics()
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, policy := range []string{"internal", "external"} {
			if got := metrics[fmt.Sprintf(noLocal, family, policy)]; got != 2 { // its two ports
				t.Errorf("no_local_endpoints_total of %s, %s: %v, want 2", family, policy, got)
			}
		}
	}
}

// TestRefusedReconnect: a connect that is refused leaves a connected UDP socket as
// it was, with the name of its peer.
func TestRefusedReconnect(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(service("web", 1), slicesOf("web", up(c.web[0])...), service("empty", 2), slicesOf("empty"))
	for _, w := range ways[3:6] {
		k := w.openTo(t, c.client, vip(1, w.family))
		k.ask(vip(1, w.family))
		if err := k.Connect(vip(2, w.family)); err == nil {
			t.Fatalf("%s: connected to a service without endpoints", w)
		}
		k.wantKept(vip(1, w.family), "web-0")
	}
}
