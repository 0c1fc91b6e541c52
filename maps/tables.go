// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
)

// Tables are the maps that the reconcile loop writes. Every method is idempotent, and must be
// called from one goroutine; programs in the kernel read at the same time. A change is safe by
// the caller's order of writes: backends and slots before the frontend that names them, and the
// opposite order for removals.
type Tables interface {
	// SetFrontend adds or replaces a frontend in one step. A cluster IP as a whole
	// (UndefinedPort: port and protocol 0) is a frontend here; in the kernel's maps it is a
	// flag of its address.
	SetFrontend(FrontendKey, Frontend) error
	// DeleteFrontend removes a frontend; it need not exist.
	DeleteFrontend(FrontendKey) error
	// WriteSlots writes backend ids to slots from base on. A frontend that names these slots must
	// have the service id of these backends.
	WriteSlots(base uint32, ids []uint32) error
	// SetBackend writes a free backend, or changes the flags of a used one.
	SetBackend(id uint32, b Backend) error
	// FreeBackend marks a backend as free.
	FreeBackend(id uint32) error
	// SetName and DeleteName set and remove the service port that a service id stands for.
	SetName(id uint32, n Name) error
	DeleteName(id uint32) error
	// SetNodeAddr adds an address that takes node ports. flags is HostNetns or 0.
	SetNodeAddr(a netip.Addr, flags uint32) error
	DeleteNodeAddr(a netip.Addr) error
	// SetServiceCIDR adds a masked range. Programs refuse its addresses that are neither a
	// frontend's nor allocated.
	SetServiceCIDR(p netip.Prefix) error
	DeleteServiceCIDR(p netip.Prefix) error
	// SetAllocated excepts an address from the service CIDRs: a Service without frontends here
	// has this address. The exception replaces a CIDR of this single address.
	SetAllocated(a netip.Addr) error
	DeleteAllocated(a netip.Addr) error
	// SetSourceRange adds a source range of a service id. The service port's load-balancer IPs
	// with flag SourceRanges admit only clients in its source ranges. The key must be one of
	// NewSourceRangeKey.
	SetSourceRange(SourceRangeKey) error
	// DeleteSourceRange removes a source range with any key; it need not exist.
	DeleteSourceRange(SourceRangeKey) error
	// Sizes returns the maps' sizes.
	Sizes() Sizes
	// Dump reads the maps.
	Dump() (*Dump, error)
}

// Sizes are the maps' numbers of entries.
type Sizes struct {
	Services, Slots, Backends, Affinity, Sources, Flows uint32
}

// The flags of `shunt run` that set Sizes.
const (
	FlagServices = "--services-map-size"
	FlagSlots    = "--slots-map-size"
	FlagBackends = "--backends-map-size"
	FlagAffinity = "--affinity-map-size"
	FlagSources  = "--sources-map-size"
	FlagFlows    = "--flows-map-size"
)

// FullError means that a map has no room for an entry. Its existing entries remain in effect.
type FullError struct {
	// Flag is empty where no flag sets the map's size.
	Map, Flag string
	Size      uint32
}

// Error names the map, its size and the flag that sets it.
func (e *FullError) Error() string {
	if e.Flag == "" {
		return fmt.Sprintf("map %s is full: it has room for %d entries, which no flag changes", e.Map, e.Size)
	}
	return fmt.Sprintf("map %s is full: it has room for %d entries; start shunt run with a larger %s",
		e.Map, e.Size, e.Flag)
}

// The maps' names, which are also their pins' file names.
const (
	mapServices     = abiMapServices
	mapSlots        = abiMapSlots
	mapBackends     = abiMapBackends
	mapBackendStats = abiMapBackendStats
	mapSockPeer     = abiMapSockPeer
	mapSockBefore   = abiMapSockBefore
	mapSockFlows    = abiMapSockFlows
	mapLocalPorts   = abiMapLocalPorts
	mapAffinity     = abiMapAffinity
	mapAddrs        = abiMapAddrs
	mapSources      = abiMapSources
	mapClientAddrs  = abiMapClientAddrs
	mapFlows        = abiMapFlows
	mapFlowsNew     = abiMapFlowsNew
	mapDirects      = abiMapDirects
	mapClaims       = abiMapClaims
	mapFragments    = abiMapFragments
	mapDevices      = abiMapDevices
	mapNames        = abiMapNames
	mapCounters     = abiMapCounters
	mapMeta         = abiMapMeta
	mapProblems     = abiMapProblems
)

// Names of maps that callers name in errors.
const (
	NameServices   = mapServices
	NameSlots      = mapSlots
	NameBackends   = mapBackends
	NameAffinity   = mapAffinity
	NameNames      = mapNames
	NameSources    = mapSources
	NameFlows      = mapFlows
	NameFlowsNew   = mapFlowsNew
	NameDirects    = mapDirects
	NameLocalPorts = mapLocalPorts
	NameFragments  = mapFragments
	NameAddrs      = mapAddrs
	// NameClientAddrs is the map of SetClientAddr.
	NameClientAddrs = mapClientAddrs
)
