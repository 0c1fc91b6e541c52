// SPDX-License-Identifier: Apache-2.0

package coexist

import (
	"shunt/e2e/rig"
)

// situation is something that happens on nodes beside the Service proxy.
type situation struct {
	name  string
	part  string // what the situation is about: A to F of the page
	right string // what is right, in words
	run   func(*scene)
	// only is the one column that the situation exists for; empty: all.
	only string
	// open is why shunt's cell is not right yet; empty: it has to be.
	open string
}

// situations are the rows of the table. They run one after the other.
var situations = []situation{
	{name: "plain", part: "-", right: "pods, processes and clients outside reach a Service", run: plain},
	{name: "node-local DNS cache", part: "C", run: nodeLocalDNS,
		right: "the cluster IP that a device of the node has is the cache's"},
	{name: "addresses on kube-ipvs0", part: "C", run: ipvsLeftovers,
		right: "cluster IPs that IPVS mode left on its device are the Services'"},
	{name: "uplink without address and gateway", part: "D", run: bareUplink,
		right: "a point-to-point link that has a default route is served"},
	{name: "shunt starts beside kube-proxy", part: "B", run: takeOver, only: shunt,
		right: "no request of a client outside fails or waits meanwhile"},
}

// plain asks a Service from everywhere: the harness itself works.
func plain(s *scene) {
	n := s.service(rig.Everywhere(s.number*3 + s.index))
	for _, family := range families {
		for _, network := range []string{"tcp", "udp"} {
			s.expect("pod "+network, s.becomes(s.client, network, rig.VIP(n, family), s.web.Name()), s.web.Name())
			s.expect("process "+network, s.ask(s.host, network, rig.VIP(n, family)), s.web.Name())
			s.expect("outside "+network,
				s.ask(s.outside, network, rig.At(of(rig.BalancerIPs(n), family), rig.ServicePort)), s.web.Name())
		}
	}
}
