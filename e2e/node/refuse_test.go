// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestRefused: without an endpoint, and at a port of a cluster IP without a service, a
// client outside is refused at once.
func TestRefused(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	gone := rig.Endpoint{Pod: c.near}
	c.apply(
		rig.Service("none", 1, rig.Everywhere(1)),
		rig.Service("unready", 2, rig.Everywhere(2)), rig.SlicesOf("unready", gone),
		rig.Service("local", 3, rig.Everywhere(3), rig.ExternalLocal), rig.SlicesOf("local", gone),
		rig.Service("web", 4, rig.Everywhere(4)), rig.SlicesOf("web", rig.Up(c.near)...))
	eachWay(func(network string, family int) {
		for n := 1; n <= 3; n++ {
			for _, f := range frontends {
				t.Run(fmt.Sprintf("%s/%s/%s/service-%d", network, families[family], f.name, n), func(t *testing.T) {
					if c.counted("no_endpoint", func() { wantRefused(t, c.outside, network, f.of(c, n, family)) }) == 0 {
						t.Error("counted as something else")
					}
				})
			}
		}
		dst := rig.At(rig.ClusterIPs(4)[family], 81)
		t.Run(fmt.Sprintf("%s/%s/undefined port", network, families[family]), func(t *testing.T) {
			if c.counted("undefined_port", func() { wantRefused(t, c.outside, network, dst) }) == 0 {
				t.Error("counted as something else")
			}
		})
	})
}

// TestPortsOfNobody: the node's stack answers at ports of its addresses that are no node
// ports, and at any other port of its own address that also has frontends.
func TestPortsOfNobody(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near)...))
	serve(rig.NodePortOf(2), c.hostNear)
	eachWay(func(network string, family int) {
		wantRefused(t, c.outside, network, rig.At(nodeAddrs(c.n1)[family], rig.NodePortOf(3)))
		wantAnswer(t, c.outside, network, rig.At(nodeAddrs(c.n1)[family], rig.NodePortOf(2)), c.hostNear, c.outside.Addrs()[family])
	})
}

// TestLocalPolicy: with the policy Local and no endpoint here, clients outside get no
// answer, and those on the node are served by endpoints elsewhere. With an endpoint here,
// only that one serves the former.
func TestLocalPolicy(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	web := rig.Service("web", 1, rig.Everywhere(1), rig.ExternalLocal)
	c.apply(web, rig.SlicesOf("web", rig.Up(c.far)...))
	dropped := c.counted("no_local_endpoint", func() {
		var silences sync.WaitGroup
		defer silences.Wait()
		eachWay(func(network string, family int) {
			for _, f := range frontends[:clusterIP] {
				silences.Go(func() { wantSilence(t, c.outside, network, f.of(c, 1, family)) })
			}
		})
	})
	if dropped < 12 {
		t.Errorf("%d packets were counted as without an endpoint here, want 12 at least", dropped)
	}
	eachWay(func(network string, family int) {
		for _, f := range frontends[:clusterIP] {
			for _, from := range []*lab.Pod{c.inside, c.hostNear} {
				if a := ask(from, network, f.of(c, 1, family), 0); a.Err != nil || a.Server != c.far.Name() {
					t.Errorf("%s asks %v by %s: %q, %v", from.Name(), f.of(c, 1, family), network, a.Server, a.Err)
				}
			}
		}
		// The policy does not apply to the cluster IP.
		wantAnswer(t, c.outside, network, frontends[clusterIP].of(c, 1, family), c.far, nodeAddrs(c.n1)[family])
	})
	c.apply(rig.SlicesOf("web", rig.Up(c.far, c.near)...))
	eachWay(func(network string, family int) {
		for _, f := range frontends[:clusterIP] {
			for range 5 { // otherwise each would serve half of them
				wantAnswer(t, c.outside, network, f.of(c, 1, family), c.near, c.outside.Addrs()[family])
			}
		}
	})
}

// TestSourceRanges: a load-balancer IP serves only the clients in its ranges. Other
// frontends do not check them.
func TestSourceRanges(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	ranges := func(all ...string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = all }
	}
	own := func(p *lab.Pod) []string {
		return []string{p.Addr4().String() + "/32", " " + p.Addr6().String() + "/128"}
	}
	c.m.Put(rig.Service("web", 1, rig.Everywhere(1), ranges(own(c.outside)...)), rig.SlicesOf("web", rig.Up(c.near, c.far)...))
	c.m.Put(rig.Service("open", 2, rig.Everywhere(2)), rig.SlicesOf("open", rig.Up(c.near)...))
	c.apply()
	want := func(open, shut *lab.Pod) {
		t.Helper()
		eachWay(func(network string, family int) {
			for i, f := range frontends {
				for _, from := range []*lab.Pod{open, shut} {
					dst := f.of(c, 1, family)
					if i != loadBalancer || from == open {
						if a := ask(from, network, dst, 0); a.Err != nil {
							t.Errorf("%s asks %v by %s: %v", from.Name(), dst, network, a.Err)
						}
						continue
					}
					if c.counted("source_range", func() { wantSilence(t, from, network, dst) }) == 0 {
						t.Errorf("%s to %v: counted as something else", from.Name(), dst)
					}
				}
			}
			wantAnswer(t, shut, network, frontends[loadBalancer].of(c, 2, family), c.near, shut.Addrs()[family])
		})
	}
	want(c.outside, c.other)
	c.apply(rig.Service("web", 1, rig.Everywhere(1), ranges(own(c.other)...)))
	want(c.other, c.outside)
	c.apply(rig.Service("web", 1, rig.Everywhere(1)))
	eachWay(func(network string, family int) {
		for _, from := range []*lab.Pod{c.outside, c.other} {
			if a := ask(from, network, frontends[loadBalancer].of(c, 1, family), 0); a.Err != nil {
				t.Errorf("%s, without ranges: %v", from.Name(), a.Err)
			}
		}
	})
}

// TestClosedBackendPort: a backend's own refusal reaches the client, over UDP as an ICMP
// error that quotes the client's own packet.
func TestClosedBackendPort(t *testing.T) {
	for _, joined := range eachNetwork() {
		t.Run(joined.name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, joined.Network)
			const closed = 7999
			for _, b := range backends {
				c.m.Put(rig.Service(b.name, b.service, rig.Everywhere(b.service)), rig.SlicesOf(b.name, rig.UpAt(closed, b.server(c))...))
			}
			c.apply()
			for _, cell := range cells() {
				dst := cell.frontend.of(c, cell.backend.service, cell.family)
				// The backend's kernel limits its ICMP errors per second.
				rig.Eventually(t, cell.String()+" is refused", func() bool {
					a := c.outside.Request(cell.network, dst, lab.RequestOptions{Timeout: silence})
					return errors.Is(a.Err, syscall.ECONNREFUSED)
				})
			}
		})
	}
}
