// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
)

// The IP plan; see the package's doc comment.
const (
	maxNodes    = 200 // 192.168.100.1 to .200
	firstClient = 201
	maxClients  = 50
	firstPod    = 2
	maxPods     = 253 // 10.244.n.2 to .254
)

// Addresses that the plan reserves for services.
var (
	ServiceCIDR4 = netip.MustParsePrefix("10.96.0.0/16")
	ServiceCIDR6 = netip.MustParsePrefix("fd00:10:96::/112")
	// ExternalCIDR4 and ExternalCIDR6 are for load-balancer and external IPs.
	ExternalCIDR4 = netip.MustParsePrefix("198.51.100.0/24")
	ExternalCIDR6 = netip.MustParsePrefix("fd00:198:51:100::/112")
	// ClusterCIDR4 and ClusterCIDR6 contain the pods of all nodes.
	ClusterCIDR4 = netip.MustParsePrefix("10.244.0.0/16")
	ClusterCIDR6 = netip.MustParsePrefix("fd00:10:244::/48")
	// SharedCIDR4 is for addresses that pods of several nodes may have, see Pod.AddAddr.
	SharedCIDR4 = netip.MustParsePrefix("10.245.0.0/16")
)

// pair is one address of each family, with its prefix length.
type pair struct{ v4, v6 netip.Prefix }

func mustPair(v4, v6 string) pair {
	return pair{netip.MustParsePrefix(v4), netip.MustParsePrefix(v6)}
}

// onWire returns a host's addresses on the wire. host is a node's number, a client's, or
// wireHost.
func onWire(host int) pair {
	return mustPair(fmt.Sprintf("192.168.100.%d/24", host), fmt.Sprintf("fd00:192:168:100::%x/64", host))
}

// onLink returns a host's addresses on links beside the wire.
func onLink(host int) pair {
	return mustPair(fmt.Sprintf("192.168.101.%d/24", host), fmt.Sprintf("fd00:192:168:101::%x/64", host))
}

// wireHost is the number of the bridge itself.
const wireHost = 254

// podAddr returns the addresses of a node's pod. Pod 1 is the node's end.
func podAddr(node, pod int) pair {
	return mustPair(fmt.Sprintf("10.244.%d.%d/32", node, pod), fmt.Sprintf("fd00:10:244:%x::%x/128", node, pod))
}

// podCIDR returns the ranges of a node's pods.
func podCIDR(node int) pair {
	return mustPair(fmt.Sprintf("10.244.%d.0/24", node), fmt.Sprintf("fd00:10:244:%x::/64", node))
}

var anywhere = mustPair("0.0.0.0/0", "::/0")

func (p pair) each(fn func(netip.Prefix) error) error {
	if err := fn(p.v4); err != nil {
		return err
	}
	return fn(p.v6)
}
