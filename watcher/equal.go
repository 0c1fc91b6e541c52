// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"slices"

	"shunt/lb"
)

// The functions below report whether two models are equal. If the model of a changed object
// equals the earlier one, the Sink is not called.

func equalService(a, b *lb.Service) bool {
	return a.Name == b.Name && a.NotServed == b.NotServed && a.Created.Equal(b.Created) &&
		slices.Equal(a.ClusterIPs, b.ClusterIPs) &&
		slices.Equal(a.ExternalIPs, b.ExternalIPs) &&
		slices.Equal(a.LoadBalancerIPs, b.LoadBalancerIPs) &&
		slices.Equal(a.SourceRanges, b.SourceRanges) &&
		a.InternalLocal == b.InternalLocal && a.ExternalLocal == b.ExternalLocal &&
		a.AffinityTimeout == b.AffinityTimeout &&
		a.HealthCheckNodePort == b.HealthCheckNodePort &&
		slices.Equal(a.Ports, b.Ports)
}

func equalSlice(a, b *lb.EndpointSlice) bool {
	return a.Name == b.Name && a.Service == b.Service && a.LastChange.Equal(b.LastChange) &&
		slices.Equal(a.Ports, b.Ports) &&
		slices.EqualFunc(a.Endpoints, b.Endpoints, equalEndpoint)
}

func equalEndpoint(a, b lb.Endpoint) bool {
	ha, hb := a.Hints, b.Hints
	a.Hints, b.Hints = nil, nil
	return a == b && equalHints(ha, hb)
}

func equalHints(a, b *lb.Hints) bool {
	if a == b || a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.Nodes, b.Nodes) && slices.Equal(a.Zones, b.Zones)
}

func equalNode(a, b *lb.Node) bool {
	return a.Name == b.Name && a.Zone == b.Zone && slices.Equal(a.Addrs, b.Addrs) &&
		a.Deleting == b.Deleting && a.Tainted == b.Tainted
}
