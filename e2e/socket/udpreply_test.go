// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"net/netip"
	"testing"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestUDPReplies: a server replies from the pod's address, whether it is bound to that address
// or to the unspecified one. A hostNetwork server replies from the node's address. To the client,
// recvfrom(2), recvmsg(2) (both by one hook) and getpeername(2) return the frontend's address,
// for each kind of frontend, also if one socket asks several services in turn.
func TestUDPReplies(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	for _, a := range c.web[0].Addrs() {
		c.web[0].ServeOn("udp", rig.At(a, 9001))
	}
	server := c.n1.HostPod("server")
	server.Serve("udp", 9001)
	objects := []any{}
	for i, e := range [][]rig.Endpoint{rig.Up(c.web[0]), rig.UpAt(9001, c.web[0]), rig.Up(c.web[1]), rig.UpAt(9001, server)} {
		name := []string{"wildcard", "bound", "far", "host-network"}[i]
		objects = append(objects, rig.Service(name, i+1, rig.Everywhere(i+1)), rig.SlicesOf(name, e...))
	}
	c.apply(objects...)
	node := []netip.Addr{c.n1.Addr4(), c.n1.Addr6()}
	for _, from := range []*lab.Pod{c.client, c.host} {
		for _, w := range append(connectedUDP[:3:3], udpWays...) {
			loose := w.open(t, from)
			for n := range 4 {
				want := []string{"web-0", "web-0", "web-1", "server"}[n]
				for _, dst := range []netip.AddrPort{rig.VIP(n+1, w.family), rig.At(w.of(rig.BalancerIPs(n+1)), rig.ServicePort),
					rig.At(w.of(rig.ExternalIPs(n+1)), rig.ServicePort), rig.At(w.of(node), rig.NodePortOf(n+1))} {
					k := loose
					if !w.sendto {
						k = w.openTo(t, from, dst)
					}
					// askTo checks that the answer shows dst as its source.
					if got := k.askTo(dst); got != want {
						t.Errorf("%s: %s asks %v: %s answers, want %s", w, from.Name(), dst, got, want)
					}
					if !w.sendto {
						k.wantPeer(dst)
					}
				}
			}
		}
	}
}
