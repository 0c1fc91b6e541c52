// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"net/netip"
	"strings"
	"testing"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestHostNetworkEndpoints: an endpoint may have the address of a node, this one or
// another. Its nodeName decides whether it is local, and it is reached like any other, also
// by itself.
func TestHostNetworkEndpoints(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	here, there := c.n1.HostPod("here"), c.n2.HostPod("there")
	for _, p := range []*lab.Pod{here, there} {
		p.Serve("tcp", rig.ServerPort)
		p.Serve("udp", rig.ServerPort)
	}
	c.apply(rig.Service("both", 1, rig.Everywhere(1)), rig.SlicesOf("both", rig.Up(here, there)...),
		rig.Service("local", 2, rig.Everywhere(2), rig.InternalLocal, rig.ExternalLocal), rig.SlicesOf("local", rig.Up(here, there)...))
	node := []netip.Addr{c.n1.Addr4(), c.n1.Addr6()}
	frontends := func(w way, n int) []netip.AddrPort {
		return []netip.AddrPort{rig.VIP(n, w.family), rig.At(w.of(rig.BalancerIPs(n)), rig.ServicePort),
			rig.At(w.of(rig.ExternalIPs(n)), rig.ServicePort), rig.At(w.of(node), rig.NodePortOf(n))}
	}
	for _, w := range ways {
		for _, from := range []*lab.Pod{c.client, c.host, here} {
			for i, dst := range frontends(w, 1) {
				w.wantServers(t, from, dst, here, there)
				if i == 0 {
					w.wantServers(t, from, frontends(w, 2)[i], here)
				}
			}
		}
	}

	outside := c.Client("outside")
	for _, r := range []netip.Prefix{lab.ServiceCIDR4, lab.ServiceCIDR6, lab.ExternalCIDR4, lab.ExternalCIDR6} {
		outside.RouteVia(r, c.n1)
	}
	for _, w := range ways {
		for i := range frontends(w, 1) {
			c.askFromOutside(w, outside, frontends(w, 1)[i], here, there)
			c.askFromOutside(w, outside, frontends(w, 2)[i], here)
		}
	}
}

// askFromOutside makes exchanges until all of the servers have answered, and fails if
// another one answers. A server on this node must see the client's own address.
func (c *cluster) askFromOutside(w way, from *lab.Pod, dst netip.AddrPort, servers ...*lab.Pod) {
	c.t.Helper()
	seen := map[string]bool{}
	for i := 0; i < 100 && (len(seen) < len(servers) || i < 4); i++ { // the chance to miss one of two is 1 in 2^99
		a := w.ask(from, dst)
		if a.Err != nil || !contains(servers, a.Server) || strings.HasPrefix(w.network, "udp") && a.From != w.asked(dst) {
			c.t.Fatalf("%s: %v: answered by %q as %v (%v), want one of %v", w, dst, a.Server, a.From, a.Err, names(servers))
		}
		for _, p := range servers {
			if p.Name() == a.Server && p.Node() == c.n1 && a.ClientSeen.Addr() != w.of(from.Addrs()) {
				c.t.Errorf("%s: %v: %s saw %v, want %v", w, dst, a.Server, a.ClientSeen, from.Addrs())
			}
		}
		seen[a.Server] = true
	}
	if len(seen) < len(servers) {
		c.t.Errorf("%s: %v: only %v answer, want %v", w, dst, seen, names(servers))
	}
}
