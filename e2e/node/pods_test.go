package node_test

import (
	"testing"

	"shunt/e2e/lab"
	"shunt/e2e/rig"
)

// TestPodsOfOtherNodes: with the policy Local and no endpoint here, a pod of another
// node is served all the same, by an endpoint anywhere: on a third node, on its own,
// or by itself. The endpoint sees this node, since its answer has to come back here.
// Clients outside are not served.
func TestPodsOfOtherNodes(t *testing.T) {
	for _, joined := range networks {
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

// TestPodsUnknown: without --cluster-cidr a pod of another node is a client like any.
func TestPodsUnknown(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	client := c.n2.Pod("client")
	c.apply(rig.Service("web", 1, rig.Everywhere(1), rig.ExternalLocal), rig.SlicesOf("web", rig.Up(c.far)...))
	eachWay(func(network string, family int) { wantSilence(t, client, network, c.nodePortAt(1, family)) })
}
