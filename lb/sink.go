// SPDX-License-Identifier: Apache-2.0

package lb

import "net/netip"

// Sink takes objects from a watcher. Every method returns at once, may be
// called from any goroutine, and a repeated call with an equal object changes
// nothing. Store is the one that reconciles; tests have their own.
type Sink interface {
	// SetService adds or replaces the service of that name.
	SetService(*Service)
	DeleteService(ServiceName)
	// SetSlice adds or replaces the slice of that name. A slice that moves from
	// one service to another leaves the first.
	SetSlice(*EndpointSlice)
	DeleteSlice(SliceName)
	// SetNode replaces what is known of this node; nil: it was not seen yet, or
	// is gone.
	SetNode(*Node)
	// SetServiceCIDRs replaces what is known of the ranges that cluster IPs come
	// from; none: there are none. Not called: nobody knows, and those that the maps
	// have, stay.
	SetServiceCIDRs([]netip.Prefix)
	// SetSynced says that all services and slices there are have been set once.
	// Nothing is programmed before.
	SetSynced()
}
