// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"errors"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shunt/e2e/rig"
	"shunt/lab"
)

// changeAddr adds an address to the node's uplink, or removes it.
func changeAddr(t *testing.T, n *lab.Node, a netip.Addr, add bool) {
	t.Helper()
	args := []string{"-n", filepath.Base(n.NetnsPath()), "addr", "del", a.String(), "dev", "eth0"}
	if add {
		args[3] = "add"
		if a.Is6() {
			args = append(args, "nodad")
		}
	}
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v\n%s", args, err, out)
	}
}

// TestNodeAddresses: an address added to an interface takes node ports without a change of
// any service, until it is removed.
func TestNodeAddresses(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1, rig.WithNodePort(1)), rig.SlicesOf("web", rig.Up(c.web[0])...))
	short := lab.RequestOptions{Timeout: 100 * time.Millisecond}
	for i, a := range []string{"192.168.100.77", "fd00:192:168:100::77"} {
		addr := netip.MustParseAddr(a)
		dst := rig.At(addr, rig.NodePortOf(1))
		tcp, udp := ways[i], ways[3+i]
		for _, from := range []*lab.Pod{c.client, c.host} {
			if got := from.Request(tcp.network, dst, short); got.Err == nil {
				t.Fatalf("%v answers before it is the node's", dst)
			}
		}
		changeAddr(t, c.n1, addr, true)
		rig.Eventually(t, a+" takes node ports", func() bool { return c.client.Request(tcp.network, dst, short).Err == nil })
		for _, from := range []*lab.Pod{c.client, c.host} {
			tcp.wantServers(t, from, dst, c.web[0])
			udp.wantServers(t, from, dst, c.web[0])
		}
		changeAddr(t, c.n1, addr, false)
		rig.Eventually(t, a+" takes no node ports any more", func() bool { return c.client.Request(tcp.network, dst, short).Err != nil })
		if got := c.client.Request(udp.network, dst, short); got.Err == nil {
			t.Errorf("%s answers at %v, which is nobody's", got.Server, dst)
		}
	}
	tcp := ways[0]
	tcp.wantServers(t, c.client, rig.At(c.n1.Addr4(), rig.NodePortOf(1)), c.web[0])
}

// TestNodePortAddresses: --nodeport-addresses selects the node's addresses that take node
// ports. The kernel refuses connections to the others, as no socket listens there.
func TestNodePortAddresses(t *testing.T) {
	t.Parallel()
	second := netip.MustParseAddr("192.168.100.78")
	for _, test := range []struct {
		flag     string
		takes    []string
		takesNot []string
	}{
		{"192.168.100.0/26,fd00:192:168:100::/64", []string{"192.168.100.1", "fd00:192:168:100::1"},
			[]string{second.String(), "127.0.0.1", "::1"}},
		{"127.0.0.0/8,::1/128", []string{"127.0.0.1", "::1"}, []string{"192.168.100.1", "fd00:192:168:100::1"}},
		{"primary", []string{second.String(), "fd00:192:168:100::1"}, []string{"192.168.100.1", "127.0.0.1", "::1"}},
		// The flag has no range of IPv6: all IPv6 addresses take node ports.
		{"192.168.100.0/26", []string{"192.168.100.1", "fd00:192:168:100::1"}, []string{second.String(), "127.0.0.1"}},
	} {
		t.Run(test.flag, func(t *testing.T) {
			t.Parallel()
			if slices.Contains(test.takes, "127.0.0.1") {
				rig.NeedOwnNetns(t)
			}
			node := &corev1.Node{}
			node.APIVersion, node.Kind, node.Name = "v1", "Node", "n1"
			// The first InternalIP is primary, at any position in the list.
			node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "192.168.100.1"})
			for _, a := range []string{second.String(), "192.168.100.1", "fd00:192:168:100::1"} {
				node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
			}
			c := newCluster(t, node)
			changeAddr(t, c.n1, second, true)
			c.d = rig.StartDaemon(t, c.n1, c.m.Path, "--nodeport-addresses", test.flag)
			c.apply(rig.Service("web", 1, rig.WithNodePort(1)), rig.SlicesOf("web", rig.Up(c.web[0])...))
			for _, a := range test.takes {
				dst := rig.At(netip.MustParseAddr(a), rig.NodePortOf(1))
				i := 0
				if dst.Addr().Is6() {
					i = 1
				}
				rig.Eventually(t, a+" takes node ports", func() bool { return ways[i].ask(c.host, dst).Err == nil })
				ways[i].wantServers(t, c.host, dst, c.web[0])
				ways[3+i].wantServers(t, c.host, dst, c.web[0])
			}
			for _, a := range test.takesNot {
				dst := rig.At(netip.MustParseAddr(a), rig.NodePortOf(1))
				for _, network := range []string{"tcp", "udp"} {
					if got := c.host.Ask(network, dst); !errors.Is(got.Err, syscall.ECONNREFUSED) {
						t.Errorf("%s %v: answered by %q (%v), want it refused by the node itself", network, dst, got.Server, got.Err)
					}
				}
			}
		})
	}
}

// TestPrimaryAddresses: with --nodeport-addresses=primary, node ports follow changes of the
// Node's addresses.
func TestPrimaryAddresses(t *testing.T) {
	t.Parallel()
	const second4, second6 = "192.168.100.79", "fd00:192:168:100::79"
	node := func(addrs ...string) *corev1.Node {
		n := &corev1.Node{}
		n.APIVersion, n.Kind, n.Name = "v1", "Node", "n1"
		for _, a := range addrs {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		return n
	}
	c := newCluster(t)
	first4, first6 := c.n1.Addr4().String(), c.n1.Addr6().String()
	c.m.Put(node(first4, second4, first6))
	c.m.Write()
	for _, a := range []string{second4, second6} {
		changeAddr(t, c.n1, netip.MustParseAddr(a), true)
	}
	c.d = rig.StartDaemon(t, c.n1, c.m.Path, "--nodeport-addresses", "primary")
	c.apply(rig.Service("web", 1, rig.WithNodePort(1)), rig.SlicesOf("web", rig.Up(c.web[0])...))
	for _, step := range []struct {
		node            *corev1.Node
		takes, takesNot []string
	}{
		{node(first4, second4, first6), []string{first4, first6}, []string{second4, second6}},
		{node(second4, first4, second6), []string{second4, second6}, []string{first4, first6}},
		{node(second4), []string{second4}, []string{first4, first6, second6}},
		{node(first6, first4), []string{first4, first6}, []string{second4, second6}},
		// Without addresses, like a recreated Node at first: no change.
		{node(), []string{first4, first6}, []string{second4, second6}},
	} {
		c.apply(step.node)
		for _, a := range step.takes {
			dst := rig.At(netip.MustParseAddr(a), rig.NodePortOf(1))
			w := ways[map[bool]int{true: 1, false: 0}[dst.Addr().Is6()]]
			rig.Eventually(t, a+" takes node ports", func() bool { return w.ask(c.client, dst).Err == nil })
			w.wantServers(t, c.client, dst, c.web[0])
		}
		for _, a := range step.takesNot {
			dst := rig.At(netip.MustParseAddr(a), rig.NodePortOf(1))
			rig.Eventually(t, a+" takes no node ports", func() bool { return errors.Is(c.host.Ask("tcp", dst).Err, syscall.ECONNREFUSED) })
		}
	}
}
