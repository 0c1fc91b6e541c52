// SPDX-License-Identifier: Apache-2.0

package lb

import "net/netip"

// Sink takes objects from a watcher. No method blocks; each may be called from any goroutine, and a
// repeated call with an equal object changes nothing. Store implements it; tests have their own.
type Sink interface {
	// SetService adds or replaces the service of that name.
	SetService(*Service)
	DeleteService(ServiceName)
	// SetSlice adds or replaces the slice of that name. A slice that moves from
	// one service to another leaves the first.
	SetSlice(*EndpointSlice)
	DeleteSlice(SliceName)
	// SetNode replaces the Node of this node; nil: it was not seen yet, or it was deleted.
	SetNode(*Node)
	// SetServiceCIDRs replaces the service CIDRs; an empty list: there are none. Until it is
	// called, those in adopted maps stay.
	SetServiceCIDRs([]netip.Prefix)
	// SetSynced reports that every existing service and slice was set once. Nothing is programmed
	// before.
	SetSynced()
}
