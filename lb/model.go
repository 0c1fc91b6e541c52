// SPDX-License-Identifier: Apache-2.0

// Package lb has the model of Services and endpoints, the policy that selects the endpoints this
// node uses, the plan of entries that the eBPF maps must hold, and the loop that reconciles the
// maps with the plan. It talks neither to the kernel nor to an API server: watchers put objects
// into a Store, and package maps does the writes. Start reading at Store, then policy.go, plan.go,
// loop.go.
package lb

import (
	"cmp"
	"net/netip"
	"time"
)

// ServiceName is the namespace and name of a Service.
type ServiceName struct {
	Namespace, Name string
}

// String returns "namespace/name", as kubectl and messages of the API do.
func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// compare orders names by namespace, then by name.
func (n ServiceName) compare(o ServiceName) int {
	return cmp.Or(cmp.Compare(n.Namespace, o.Namespace), cmp.Compare(n.Name, o.Name))
}

// Protocol is an IP protocol number (IANA), as in the IP header.
type Protocol uint8

// The transport protocols that a ServicePort may name. SCTP is parsed but not served: no hook
// translates it.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the protocol as v1.Protocol spells it.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return "unknown"
}

// Service is what shunt uses of a v1.Service. It is immutable after it was passed to a Store.
// Addresses are valid, unmapped (Is4 or Is6) and without duplicates: the converter has left out
// invalid fields, with a warning.
type Service struct {
	Name ServiceName
	// Created is metadata.creationTimestamp, zero where there is none. Of two services that claim
	// one frontend with the same rank, the older one gets it.
	Created time.Time
	// ClusterIPs holds one address per family at most.
	ClusterIPs []netip.Addr
	// NotServed: another proxy serves the service (label service.kubernetes.io/service-proxy-name).
	// shunt only notes that its cluster IPs are allocated.
	NotServed bool
	// ExternalIPs is spec.externalIPs. LoadBalancerIPs are the addresses of
	// status.loadBalancer.ingress whose ipMode is VIP or unset.
	ExternalIPs, LoadBalancerIPs []netip.Addr
	// SourceRanges is spec.loadBalancerSourceRanges, masked.
	SourceRanges []netip.Prefix
	// InternalLocal and ExternalLocal: internalTrafficPolicy, and externalTrafficPolicy, is Local.
	InternalLocal, ExternalLocal bool
	// AffinityTimeout is sessionAffinityConfig.clientIP.timeoutSeconds, in whole seconds; 0 where
	// sessionAffinity is None.
	AffinityTimeout time.Duration
	// HealthCheckNodePort is 0 unless the type is LoadBalancer and ExternalLocal is set.
	HealthCheckNodePort uint16
	Ports               []ServicePort
}

// ServicePort is one of spec.ports.
type ServicePort struct {
	// Name may be empty if the service has only one port.
	Name     string
	Protocol Protocol
	// Port is 1–65535, host byte order like all ports in this package.
	Port uint16
	// NodePort is 0 where none is allocated.
	NodePort uint16
}

// SliceName is the namespace and name of an EndpointSlice.
type SliceName struct {
	Namespace, Name string
}

// String returns "namespace/name".
func (n SliceName) String() string { return n.Namespace + "/" + n.Name }

// EndpointSlice is what shunt uses of a discovery.k8s.io/v1 EndpointSlice. It is immutable after it
// was passed to a Store.
type EndpointSlice struct {
	Name SliceName
	// Service is the label kubernetes.io/service-name, in the slice's namespace.
	Service ServiceName
	// LastChange is the annotation endpoints.kubernetes.io/last-change-trigger-time, zero where
	// there is none. Metrics measure programming latency from it.
	LastChange time.Time
	Ports      []EndpointPort
	Endpoints  []Endpoint
}

// EndpointPort is one port of a slice. Name and protocol match it with a ServicePort.
type EndpointPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Endpoint is one endpoint of a slice, with its first address only.
type Endpoint struct {
	// Addr is valid and unmapped.
	Addr netip.Addr
	// The conditions, with the API's defaults applied (nil ready is true, nil serving is true, nil
	// terminating is false).
	Ready, Serving, Terminating bool
	// Node is nodeName, empty where it is not set.
	Node string
	// Hints is nil where the endpoint has none.
	Hints *Hints
}

// Hints is the endpoint's hints.forNodes and hints.forZones.
type Hints struct {
	Nodes, Zones []string
}

// Node is what shunt uses of the v1.Node of this node.
type Node struct {
	Name string
	// Zone is the label topology.kubernetes.io/zone, empty where there is none.
	Zone string
	// Addrs are the addresses of type InternalIP in status.addresses, followed by those of type
	// ExternalIP. The first of a family is the Node's primary address.
	Addrs []netip.Addr
	// Deleting: metadata.deletionTimestamp is set.
	Deleting bool
	// Tainted: the Node has the taint ToBeDeletedByClusterAutoscaler.
	Tainted bool
}
