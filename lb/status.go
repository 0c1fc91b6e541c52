// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"time"

	"shunt/maps"
)

// Family is an IP family: its version number.
type Family uint8

// The two IP families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns the family as v1.IPFamily spells it.
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// FamilyOf returns the family of a valid, unmapped address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Status is a snapshot of the reconcile loop, for health and metrics.
type Status struct {
	// Synced: the first reconcile after SetSynced is done, and OnSynced has run.
	Synced bool
	// LastSync is when a reconcile last ended with every known object programmed.
	LastSync time.Time
	// QueuedSince is when the oldest change came in that was not tried yet; zero where there is
	// none. A change that was tried and failed does not count: the loop is not late for it.
	QueuedSince time.Time
	// LastQueued is when the newest change came in.
	LastQueued time.Time
	// Err is why an object other than a Service is not in the maps (the node's addresses, the
	// service CIDRs, leftovers of an earlier daemon), and which Services lack room; nil where there
	// is neither.
	Err error
	// Failing counts the Services that cannot be programmed and are retried, or lack room; Problems
	// says why.
	Failing int
	// The changes that came in since start, and those of them that are not programmed yet.
	ServiceChanges, EndpointChanges               uint64
	ServiceChangesPending, EndpointChangesPending int
	// NoLocalEndpoints counts the service ports, of one family each, whose policy is Local and that
	// have endpoints, but none to use on this node.
	NoLocalEndpoints map[NoLocalKey]int
	// NodePortAddrs are the addresses of this node that take node ports, sorted.
	NodePortAddrs []netip.Addr
	// Problems is what Services ask for and do not get.
	Problems Problems
	// Fill is how full the maps are whose size is a flag and that the loop writes.
	Fill []maps.Fill
	// Exceptions counts the addresses that are allocated to Services and not in the maps: another
	// proxy serves them, or they have no room. ExceptionRoom is how many can be excepted from the
	// service CIDRs. Where there are more, no address is refused as unallocated.
	Exceptions, ExceptionRoom int
	// Node is nil until this Node was seen, and after it was deleted.
	Node *Node
}

// NoLocalKey is the key of Status.NoLocalEndpoints.
type NoLocalKey struct {
	Family Family
	// External: externalTrafficPolicy is Local, otherwise internalTrafficPolicy.
	External bool
}

// HealthCheck is what the healthCheckNodePort server of a service answers to requests of one
// family. A service has one for each family of its cluster IPs.
type HealthCheck struct {
	Service ServiceName
	Family  Family
	// Port is spec.healthCheckNodePort.
	Port uint16
	// LocalEndpoints counts the addresses of ready endpoints on this node that the service's ports
	// use. An address that serves several ports counts once. It is 0 where the service could not be
	// programmed, or where the maps have no external frontend of one of its ports.
	LocalEndpoints int
}

// Report is the result of one reconcile.
type Report struct {
	Started, Ended time.Time
	// Full: every service was looked at: the first reconcile, or this node's zone changed.
	Full bool
	// Services counts those that were looked at. Failed counts those that could not be programmed,
	// and those for which the maps lack room.
	Services, Failed int
	// Writes counts the map writes by kind.
	Writes maps.Writes
	// Programmed has LastChange of every changed slice whose change this reconcile brought into the
	// maps, at most maxTriggers for each service.
	Programmed []time.Time
	// Err joins the first errors and the number of the others.
	Err error
}

// Observer is called on the loop's goroutine. Its methods must not block.
type Observer interface {
	Reconciled(Report)
	// SetHealthChecks is called after any check changed, with all of them, sorted by service and
	// family.
	SetHealthChecks([]HealthCheck)
}
