// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestConnect asks every kind of frontend in every way, from a pod and from the node: both
// endpoints answer, one on this node and one on another, and neither side sees the
// translation.
func TestConnect(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("edge", 1, rig.Everywhere(1)), rig.SlicesOf("edge", rig.Up(c.web[0], c.web[1])...))
	node := []netip.Addr{c.n1.Addr4(), c.n1.Addr6()}
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for _, frontend := range []struct {
		name  string
		addrs []netip.Addr
		port  uint16
		from  []*lab.Pod
	}{
		{"cluster IP", rig.ClusterIPs(1), rig.ServicePort, []*lab.Pod{c.client, c.host}},
		{"load-balancer IP", rig.BalancerIPs(1), rig.ServicePort, []*lab.Pod{c.client, c.host}},
		{"external IP", rig.ExternalIPs(1), rig.ServicePort, []*lab.Pod{c.client, c.host}},
		{"node port", node, rig.NodePortOf(1), []*lab.Pod{c.client, c.host}},
		{"node port on loopback", loopback, rig.NodePortOf(1), []*lab.Pod{c.host}},
	} {
		for _, from := range frontend.from {
			for _, w := range ways {
				t.Run(fmt.Sprintf("%s/%s/%s", frontend.name, from.Name(), w), func(t *testing.T) {
					if w.of(frontend.addrs).IsLoopback() {
						rig.NeedOwnNetns(t)
					}
					w.wantServers(t, from, rig.At(w.of(frontend.addrs), frontend.port), c.web[0], c.web[1])
				})
			}
		}
	}
	t.Run("the client's own address", func(t *testing.T) {
		for _, w := range ways {
			a := w.ask(c.client, rig.VIP(1, w.family))
			if a.Err != nil || a.ClientSeen.Addr() != w.of(c.client.Addrs()) {
				t.Errorf("%s: the server saw %v (%v), want %v", w, a.ClientSeen, a.Err, w.of(c.client.Addrs()))
			}
		}
	})
	t.Run("a pod's own loopback", func(t *testing.T) { podLoopback(t, c) })
	t.Run("addresses that are no service's", func(t *testing.T) { notOurs(t, c) })
	t.Run("ports of the node's own processes", func(t *testing.T) {
		for _, w := range append(slices.Clone(ways[:2]), ways[3:]...) { // only two over TCP: a closed connection holds its ports for a minute
			t.Run(w.String(), func(t *testing.T) { fromNodePort(t, c, w) })
		}
		t.Run("a server", func(t *testing.T) { onNodePort(t, c) })
	})
	t.Run("MPTCP", func(t *testing.T) { mptcp(t, c) })
}

// fromNodePort: no socket listens on a node port, and a process of the node may use that port
// as the source port of a connection.
func fromNodePort(t *testing.T, c *cluster, w way) {
	rounds := 1
	if !strings.HasPrefix(w.network, "tcp") {
		rig.NeedOwnNetns(t)
		rounds = 10
	}
	opts := lab.RequestOptions{Unconnected: w.sendto, Local: netip.AddrPortFrom(w.any(), rig.NodePortOf(1))}
	for range rounds {
		a := c.host.Request(w.network, rig.VIP(1, w.family), opts)
		if a.Err != nil || a.ClientSeen.Port() != rig.NodePortOf(1) {
			t.Errorf("from the node port: the server saw %v (%v)", a.ClientSeen, a.Err)
		}
	}
}

// onNodePort: a process of the node may listen on a node port.
func onNodePort(t *testing.T, c *cluster) {
	for _, a := range []netip.Addr{c.n1.Addr4(), c.n1.Addr6()} {
		for _, network := range []string{"tcp", "udp"} { // fails the test if the port is taken
			s := c.host.ServeOn(network, rig.At(a, rig.NodePortOf(1)))
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		}
	}
}

// podLoopback: a pod's 127.0.0.1 and ::1 belong to the pod, on every port. Its own server
// answers there, and nothing does without a server.
func podLoopback(t *testing.T, c *cluster) {
	other := c.n1.Pod("other")
	for _, a := range []string{"127.0.0.1", "::1"} {
		dst := rig.At(netip.MustParseAddr(a), rig.NodePortOf(1))
		for _, network := range []string{"tcp", "udp"} {
			c.client.ServeOn(network, dst)
			if got := c.client.Ask(network, dst); got.Err != nil || got.Server != "client" {
				t.Errorf("%s %v is answered by %q (%v), want the pod itself", network, dst, got.Server, got.Err)
			}
			if got := other.Ask(network, dst); !errors.Is(got.Err, syscall.ECONNREFUSED) {
				t.Errorf("%s %v where nobody listens: answered by %q (%v)", network, dst, got.Server, got.Err)
			}
		}
	}
}

// notOurs: addresses that are no frontends are not translated: a pod's address, the node
// port's number on it, and a free address of the service range.
func notOurs(t *testing.T, c *cluster) {
	before := c.d.Reasons()
	for _, w := range ways {
		direct := rig.At(w.of(c.web[1].Addrs()), rig.ServerPort)
		w.wantServers(t, c.client, direct, c.web[1])
		if !w.sendto { // the kernel sends no ICMP errors to an unconnected socket
			if a := w.ask(c.client, rig.At(direct.Addr(), rig.NodePortOf(1))); !errors.Is(a.Err, syscall.ECONNREFUSED) {
				t.Errorf("%s: a pod's closed port is answered by %q (%v)", w, a.Server, a.Err)
			}
		}
		short := lab.RequestOptions{Unconnected: w.sendto, Timeout: 50 * time.Millisecond}
		if a := c.client.Request(w.network, rig.VIP(200, w.family), short); !errors.Is(a.Err, syscall.ETIMEDOUT) {
			t.Errorf("%s: a free service address: answered by %q (%v)", w, a.Server, a.Err)
		}
	}
	after := c.d.Reasons()
	if after["no_frontend"] == before["no_frontend"] {
		t.Error("nothing was counted as no_frontend")
	}
	for _, reason := range []string{"translated", "no_endpoint", "undefined_port"} {
		if after[reason] != before[reason] {
			t.Errorf("%d connections were counted as %s", after[reason]-before[reason], reason)
		}
	}
}

// TestHairpin: a pod reaches itself through its own service, and sees its own address.
func TestHairpin(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("own", 1, rig.Everywhere(1)), rig.SlicesOf("own", rig.Up(c.web[0])...))
	for _, w := range ways {
		for _, dst := range []netip.AddrPort{
			rig.VIP(1, w.family), rig.At(w.of(rig.BalancerIPs(1)), rig.ServicePort),
			rig.At(w.of([]netip.Addr{c.n1.Addr4(), c.n1.Addr6()}), rig.NodePortOf(1)),
		} {
			w.wantServers(t, c.web[0], dst, c.web[0])
			a := w.ask(c.web[0], dst)
			if own := w.of(c.web[0].Addrs()); a.ClientSeen.Addr() != own {
				t.Errorf("%s: the pod saw %v (%v), want itself, %v", w, a.ClientSeen, a.Err, own)
			}
		}
	}
}

// TestSameNodePort: TCP and UDP of one port number may belong to different services.
func TestSameNodePort(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	only := func(i int, n int) func(*corev1.Service) {
		return func(s *corev1.Service) {
			rig.WithNodePort(n)(s)
			s.Spec.Ports = s.Spec.Ports[i : i+1]
		}
	}
	c.apply(rig.Service("a", 1, only(0, 7)), rig.SlicesOf("a", rig.Up(c.web[0])...),
		rig.Service("b", 2, only(1, 7)), rig.SlicesOf("b", rig.Up(c.web[1])...))
	for _, from := range []*lab.Pod{c.client, c.host} {
		way{"tcp4", 4, false}.wantServers(t, from, rig.At(c.n1.Addr4(), rig.NodePortOf(7)), c.web[0])
		way{"udp4", 4, false}.wantServers(t, from, rig.At(c.n1.Addr4(), rig.NodePortOf(7)), c.web[1])
		way{"tcp6", 6, false}.wantServers(t, from, rig.At(c.n1.Addr6(), rig.NodePortOf(7)), c.web[0])
		way{"udp6", 6, true}.wantServers(t, from, rig.At(c.n1.Addr6(), rig.NodePortOf(7)), c.web[1])
	}
}
