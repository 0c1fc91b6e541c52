// SPDX-License-Identifier: Apache-2.0

// Package lb owns the model of Services and endpoints, the policy that says
// which endpoints this node uses, the plan of entries the eBPF maps must hold,
// and the one loop that reconciles the maps with it. It never talks to a
// kernel or an API server: watchers put objects into a Store, and package maps
// takes the writes. Start reading at Store, then policy.go, plan.go, loop.go.
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

// String gives "namespace/name", as kubectl and the API's own messages do.
func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// compare orders names by namespace, then by name.
func (n ServiceName) compare(o ServiceName) int {
	return cmp.Or(cmp.Compare(n.Namespace, o.Namespace), cmp.Compare(n.Name, o.Name))
}

// Protocol is an IP protocol number (IANA), the value that is in the IP header.
type Protocol uint8

// The transport protocols that a ServicePort may name. SCTP is understood and
// refused: no hook of ours translates it.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String gives the protocol as v1.Protocol spells it.
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

// Service is what shunt uses of a v1.Service. It is immutable once it has been
// given to a Store. Addresses are valid, unmapped (Is4 or Is6) and without
// duplicates; what was invalid in the object was left out by the converter,
// with a warning.
type Service struct {
	Name ServiceName
	// Created is metadata.creationTimestamp, zero where there is none. Of two
	// services that claim the same frontend by the same kind of address, the older
	// one has it.
	Created time.Time
	// ClusterIPs holds one address per family at most.
	ClusterIPs []netip.Addr
	// NotServed: all that counts is that the cluster IPs are allocated. Another proxy
	// serves the service (label service.kubernetes.io/service-proxy-name).
	NotServed bool
	// ExternalIPs is spec.externalIPs; LoadBalancerIPs those of
	// status.loadBalancer.ingress whose ipMode is VIP or unset.
	ExternalIPs, LoadBalancerIPs []netip.Addr
	// SourceRanges is spec.loadBalancerSourceRanges, masked.
	SourceRanges []netip.Prefix
	// InternalLocal and ExternalLocal: the traffic policy is Local.
	InternalLocal, ExternalLocal bool
	// AffinityTimeout is sessionAffinityConfig.clientIP.timeoutSeconds, whole
	// seconds; 0 where sessionAffinity is None.
	AffinityTimeout time.Duration
	// HealthCheckNodePort is 0 unless type LoadBalancer and ExternalLocal.
	HealthCheckNodePort uint16
	Ports               []ServicePort
}

// ServicePort is one of spec.ports.
type ServicePort struct {
	// Name may be empty if the service has one port only.
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

// String gives "namespace/name".
func (n SliceName) String() string { return n.Namespace + "/" + n.Name }

// EndpointSlice is what shunt uses of a discovery.k8s.io/v1 EndpointSlice. It
// is immutable once it has been given to a Store.
type EndpointSlice struct {
	Name SliceName
	// Service is the label kubernetes.io/service-name, in the slice's namespace.
	Service ServiceName
	// LastChange is the annotation endpoints.kubernetes.io/last-change-trigger-time,
	// zero where there is none: metrics count from it.
	LastChange time.Time
	Ports      []EndpointPort
	Endpoints  []Endpoint
}

// EndpointPort joins a ServicePort by name and protocol.
type EndpointPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Endpoint is one endpoint of a slice with its first address.
type Endpoint struct {
	// Addr is valid and unmapped.
	Addr netip.Addr
	// The conditions, after the API's defaults (nil ready is true, nil serving
	// is true, nil terminating is false).
	Ready, Serving, Terminating bool
	// Node is nodeName, empty where it is unknown.
	Node string
	// Hints is nil where the endpoint has none.
	Hints *Hints
}

// Hints is the endpoint's hints.forNodes and hints.forZones.
type Hints struct {
	Nodes, Zones []string
}

// Node is what shunt uses of this node's own v1.Node.
type Node struct {
	Name string
	// Zone is the label topology.kubernetes.io/zone, empty where there is none.
	Zone string
	// Addrs are status.addresses of type InternalIP, and after them those of type
	// ExternalIP: the first of a family is the Node's primary address.
	Addrs []netip.Addr
	// Deleting: metadata.deletionTimestamp is set.
	Deleting bool
	// Tainted: carries the taint ToBeDeletedByClusterAutoscaler.
	Tainted bool
}
