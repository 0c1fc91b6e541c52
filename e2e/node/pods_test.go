// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"testing"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestPodsOfOtherNodes: with the policy Local and no endpoint here, a pod of another node
// is still served, by an endpoint anywhere: on a third node, on its own, or itself. The
// endpoint sees this node, since its replies must return here. Clients outside are not
// served.
func TestPodsOfOtherNodes(t *testing.T) {
	for _, joined := range eachNetwork() {
		t.Run(joined.name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, joined.Network, clusterCIDRs)
			third := c.Node("n3").Pod("third")
			client, neighbour := c.n2.Pod("client"), c.n2.Pod("neighbour")
			servers := []*lab.Pod{third, neighbour, client}
			serve(rig.ServerPort, servers...)
			for i, server := range servers {
				c.m.Put(rig.Service(server.Name(), i+1, rig.Everywhere(i+1), rig.ExternalLocal), rig.SlicesOf(server.Name(), rig.Up(server)...))
			}
			c.m.Put(rig.Service("here", 4, rig.Everywhere(4), rig.ExternalLocal), rig.SlicesOf("here", rig.Up(c.near)...))
			c.apply()
			eachWay(func(network string, family int) {
				seen := nodeAddrs(c.n1)[family]
				if joined.VXLAN {
					seen = c.n1.PodCIDRs()[family].Addr()
				}
				for i, server := range servers {
					for range 3 {
						wantAnswer(t, client, network, c.nodePortAt(i+1, family), server, seen)
					}
				}
				wantAnswer(t, client, network, c.nodePortAt(4, family), c.near, client.Addrs()[family])
				wantSilence(t, c.outside, network, c.nodePortAt(1, family))
			})
		})
	}
}

// TestPodsUnknown: without --cluster-cidr a pod of another node is treated like a client
// outside.
func TestPodsUnknown(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	client := c.n2.Pod("client")
	c.apply(rig.Service("web", 1, rig.Everywhere(1), rig.ExternalLocal), rig.SlicesOf("web", rig.Up(c.far)...))
	eachWay(func(network string, family int) { wantSilence(t, client, network, c.nodePortAt(1, family)) })
}

// TestPodDevices: the packet path serves a pod whose sockets the socket hooks do not see, at
// every kind of frontend, also when the pod itself is the endpoint. The pod is an inside
// client: with the policy Local it gets endpoints of other nodes too.
func TestPodDevices(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{}, "--pod-devices=veth*")
	vm := c.n1.Sandbox("vm")
	serve(rig.ServerPort, vm)
	c.backendServices()
	c.apply(
		rig.Service("itself", 5, rig.Everywhere(5)), rig.SlicesOf("itself", rig.Up(vm)...),
		rig.Service("elsewhere", 6, rig.Everywhere(6), rig.ExternalLocal), rig.SlicesOf("elsewhere", rig.Up(c.far)...),
		rig.Service("nobody", 7, rig.Everywhere(7)))
	rig.Eventually(t, "the pod's device is attached to", func() bool { return answers(vm, "tcp", rig.VIP(1, 4)) })
	for _, cell := range cells() {
		// The server sees the pod's own address: replies to it pass this node without SNAT.
		seen := vm.Addrs()[cell.family]
		dst := cell.frontend.of(c, cell.backend.service, cell.family)
		if err := checkAnswer(ask(vm, cell.network, dst, 0), cell.network, dst, cell.backend.server(c), seen); err != nil {
			t.Errorf("%s: %v", cell, err)
		}
	}
	eachWay(func(network string, family int) {
		for _, f := range frontends {
			if a := ask(vm, network, f.of(c, 5, family), 0); a.Err != nil || a.Server != vm.Name() {
				t.Errorf("to itself by its %s, %s %s: %q, %v", f.name, network, families[family], a.Server, a.Err)
			}
			wantAnswer(t, vm, network, f.of(c, 6, family), c.far, vm.Addrs()[family])
			wantRefused(t, vm, network, f.of(c, 7, family))
		}
	})
}

// TestSourceRangesOfPodDevice: source ranges apply to a pod whose sockets the hooks do not
// see, by the source of its packets.
func TestSourceRangesOfPodDevice(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{}, "--pod-devices=veth*")
	vm, other := c.n1.Sandbox("vm"), c.n1.Sandbox("other")
	c.apply(rig.Service("web", 1, rig.Everywhere(1), rig.FromRanges(vm.Addr4().String()+"/32", vm.Addr6().String()+"/128")),
		rig.SlicesOf("web", rig.Up(c.near, c.far)...))
	for _, p := range []*lab.Pod{vm, other} {
		rig.Eventually(t, "the device of "+p.Name()+" is attached to", func() bool { return answers(p, "tcp", rig.VIP(1, 4)) })
	}
	eachWay(func(network string, family int) {
		dst := frontends[loadBalancer].of(c, 1, family)
		if a := ask(vm, network, dst, 0); a.Err != nil {
			t.Errorf("%s asks %v by %s: %v", vm.Name(), dst, network, a.Err)
		}
		if c.counted("source_range", func() { wantSilence(t, other, network, dst) }) == 0 {
			t.Errorf("%s to %v: counted as something else", other.Name(), dst)
		}
	})
}
