// SPDX-License-Identifier: Apache-2.0

package maps

// Writes counts map writes by kind. Frontends, Names, NodeAddrs, Sources and
// ServiceCidrs (with addresses that are excepted from them) are system calls; Backends and Slots are stores to mapped memory, of
// one record and of one 4-byte slot each.
type Writes struct {
	Frontends, Slots, Backends, Names, NodeAddrs, Sources, ServiceCidrs uint64
}

// Add adds another count to this one.
func (w *Writes) Add(o Writes) {
	w.Frontends += o.Frontends
	w.Slots += o.Slots
	w.Backends += o.Backends
	w.Names += o.Names
	w.NodeAddrs += o.NodeAddrs
	w.ServiceCidrs += o.ServiceCidrs
	w.Sources += o.Sources
}

// Total is the sum over all kinds.
func (w Writes) Total() uint64 {
	return w.Frontends + w.Slots + w.Backends + w.Names + w.NodeAddrs + w.Sources + w.ServiceCidrs
}

// FlowStats is what became of flows of the packet path, and how full map flows was
// when it was last gone through.
type FlowStats struct {
	// Expired counts flows that ended or were not used for their time, Evicted
	// those that had to go before it, for room.
	Expired, Evicted uint64
	Fill             Fill
}

// Fill is how full one map is.
type Fill struct {
	// Map is the map's name; Flag is the flag of `shunt run` that sets its size.
	Map, Flag string
	// Used counts entries; Size is how many there can be.
	Used, Size uint32
}
