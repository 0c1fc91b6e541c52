// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"shunt/lb"
)

// taintAutoscaler is the taint that the cluster autoscaler sets on a node before it
// deletes the node: load balancers should stop choosing it (KEP-3836).
const taintAutoscaler = "ToBeDeletedByClusterAutoscaler"

// Node converts a Node; the result is never nil.
func (c *Converter) Node(n *v1.Node) (*lb.Node, []Warning) {
	p := &warnings{of: Warning{Kind: kindNode, Name: n.Name}}
	out := &lb.Node{
		Name:     n.Name,
		Zone:     n.Labels[v1.LabelTopologyZone],
		Deleting: n.DeletionTimestamp != nil,
		Tainted: slices.ContainsFunc(n.Spec.Taints, func(t v1.Taint) bool {
			return t.Key == taintAutoscaler
		}),
	}
	// Internal addresses precede external ones, independent of the order in the object:
	// the first InternalIP is the node's primary address.
	for _, kind := range []v1.NodeAddressType{v1.NodeInternalIP, v1.NodeExternalIP} {
		for i, a := range n.Status.Addresses {
			if a.Type != kind {
				continue
			}
			ip, ok := p.readAddr(path{"status.addresses", i, "address"}, a.Address, asNode)
			if ok && !slices.Contains(out.Addrs, ip) {
				out.Addrs = append(out.Addrs, ip)
			}
		}
	}
	return out, p.list
}
