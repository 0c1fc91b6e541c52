// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
)

// Tables is what the reconcile loop writes. Every method is idempotent, and is
// to be called from one goroutine; programs in the kernel read meanwhile. The
// caller keeps the order that makes a change safe: backends and slots before
// the frontend that names them, and frees in the other direction.
type Tables interface {
	// SetFrontend adds or replaces an entry of services in one step. A cluster IP
	// as a whole (UndefinedPort: port and protocol 0) is a frontend here, and a
	// flag of its address in the maps.
	SetFrontend(FrontendKey, Service) error
	// DeleteFrontend removes an entry; it need not be there.
	DeleteFrontend(FrontendKey) error
	// WriteSlots fills slots from base on with backend ids. A frontend that names
	// them must be of the ids' own service.
	WriteSlots(base uint32, ids []uint32) error
	// SetBackend fills a free record, or changes the flags of a used one.
	SetBackend(id uint32, b Backend) error
	// FreeBackend marks a record as nobody's.
	FreeBackend(id uint32) error
	// SetName and DeleteName keep what a service id stands for.
	SetName(id uint32, n Name) error
	DeleteName(id uint32) error
	// SetNodeAddr adds an address that takes node ports; flags: OwnNetns.
	SetNodeAddr(a netip.Addr, flags uint32) error
	DeleteNodeAddr(a netip.Addr) error
	// SetServiceCIDR adds a range, masked, of which the addresses that no service
	// has are refused.
	SetServiceCIDR(p netip.Prefix) error
	DeleteServiceCIDR(p netip.Prefix) error
	// SetAllocated excepts an address from the service CIDRs: a service has it that
	// has no frontends here. A CIDR of this one address is replaced.
	SetAllocated(a netip.Addr) error
	DeleteAllocated(a netip.Addr) error
	// SetSource adds a range of clients that a service id's load-balancer IPs let
	// in, where SourceRanges is set; the key is one that NewSourceKey makes.
	SetSource(SourceKey) error
	// DeleteSource removes a range, whatever key it has; it need not be there.
	DeleteSource(SourceKey) error
	// Sizes gives what fits.
	Sizes() Sizes
	// Dump reads everything back.
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

// maxEntries bounds every size: an array of so many 24-byte backends is 1.6 GB.
const maxEntries = 1 << 26

// Validate refuses sizes that the kernel would not take or nobody can mean.
func (s Sizes) Validate() error {
	for _, f := range []struct {
		flag string
		n    uint32
	}{{FlagServices, s.Services}, {FlagSlots, s.Slots}, {FlagBackends, s.Backends}, {FlagAffinity, s.Affinity},
		{FlagSources, s.Sources}, {FlagFlows, s.Flows}} {
		if f.n < 16 || f.n > maxEntries {
			return fmt.Errorf("%s is %d: give a number of entries from 16 to %d", f.flag, f.n, maxEntries)
		}
	}
	return nil
}

// FullError says that a map has no room for what should go into it. What it
// holds already stays in effect.
type FullError struct {
	// Flag is empty where none sets the map's size.
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

// flagOf names the flag that sets a map's size.
func flagOf(name string) string {
	switch name {
	case mapServices, mapNames, mapAddrs:
		return FlagServices
	case mapSlots:
		return FlagSlots
	case mapBackends, mapBackendStats:
		return FlagBackends
	case mapAffinity:
		return FlagAffinity
	case mapSources:
		return FlagSources
	case mapFlows:
		return FlagFlows
	}
	return ""
}

// NewFullError is the FullError for a map of these sizes by name.
func (s Sizes) NewFullError(name string) *FullError {
	return &FullError{Map: name, Flag: flagOf(name), Size: s.of(name)}
}

// of gives the size of a map by name, 0 for one that has no flag.
func (s Sizes) of(name string) uint32 {
	switch name {
	case mapServices, mapNames, mapAddrs:
		return s.Services
	case mapSlots:
		return s.Slots
	case mapBackends, mapBackendStats:
		return s.Backends
	case mapAffinity:
		return s.Affinity
	case mapSources:
		return s.Sources
	case mapFlows:
		return s.Flows
	}
	return 0
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
	mapOwnPorts     = abiMapOwnPorts
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
	NameServices = mapServices
	NameSlots    = mapSlots
	NameBackends = mapBackends
	NameAffinity = mapAffinity
	NameNames    = mapNames
	NameSources  = mapSources
	NameFlows    = mapFlows
	NameAddrs    = mapAddrs
	// NameClientAddrs is of the map that SetClientAddr writes to.
	NameClientAddrs = mapClientAddrs
)
