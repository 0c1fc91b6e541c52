// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"time"

	"shunt/maps"
)

// Family is an IP family, by its version number.
type Family uint8

// The two IP families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String gives the family as v1.IPFamily spells it.
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// FamilyOf is the family of a valid, unmapped address.
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
	// LastSync is when the maps last held everything that was known.
	LastSync time.Time
	// QueuedSince is when the oldest change was taken that was not tried yet; zero
	// where there is none. One that was tried and failed does not count: it says
	// nothing of the loop.
	QueuedSince time.Time
	// LastQueued is when the newest change was taken.
	LastQueued time.Time
	// Err is why something that is no Service's is not in the maps (the node's
	// addresses, the service CIDRs), and what finds no room; nil where there is neither.
	Err error
	// Failing counts the Services that could not be brought into the maps and are tried
	// again; Problems says why.
	Failing int
	// The changes taken since start, and those of them not programmed yet.
	ServiceChanges, EndpointChanges               uint64
	ServiceChangesPending, EndpointChangesPending int
	// NoLocalEndpoints counts the service ports (of one family) whose policy is
	// Local and which have endpoints, but no usable one on this node.
	NoLocalEndpoints map[NoLocalKey]int
	// NodePortAddrs are the addresses of this node that take node ports, sorted.
	NodePortAddrs []netip.Addr
	// Problems are what of the Services is not served as their objects ask.
	Problems Problems
	// Fill says how full the maps are that the loop fills.
	Fill []maps.Fill
	// Exceptions counts the addresses that are allocated to Services which the maps do not
	// have: another proxy serves them, or they find no room. Of them ExceptionRoom can be told
	// from those that no Service has; where there are more, no address is refused.
	Exceptions, ExceptionRoom int
	// Node is nil until this Node was seen.
	Node *Node
}

// NoLocalKey names a count of Status.NoLocalEndpoints.
type NoLocalKey struct {
	Family Family
	// External: of externalTrafficPolicy, else of internalTrafficPolicy.
	External bool
}

// HealthCheck is what the healthCheckNodePort server of a service must say to those
// who ask by one family. A service has one for each family of its cluster IPs.
type HealthCheck struct {
	Service ServiceName
	Family  Family
	// Port is spec.healthCheckNodePort.
	Port uint16
	// LocalEndpoints counts ready endpoints of this node that the service's ports
	// use; one that is listed under several service ports counts once. It is 0 where
	// the service could not be brought into the maps.
	LocalEndpoints int
}

// Report is what one reconcile did.
type Report struct {
	Started, Ended time.Time
	// Full: every service was looked at (the first reconcile, or the node changed).
	Full bool
	// Services counts those that were looked at, Failed those that could not be
	// programmed, and those for which the maps have not room for all.
	Services, Failed int
	// Writes by kind of map write.
	Writes maps.Writes
	// Programmed holds LastChange of every slice that is now in the maps for the
	// first time since it changed.
	Programmed []time.Time
	// Err is the first failures and the number of the others.
	Err error
}

// Observer hears from the reconcile goroutine; its methods must not block.
type Observer interface {
	Reconciled(Report)
	// SetHealthChecks is called with all of them, sorted by service and family, when any changed.
	SetHealthChecks([]HealthCheck)
}
