// SPDX-License-Identifier: Apache-2.0

package maps

// Writes counts map writes by kind. Backends counts stores to mapped memory of one backend each,
// Slots those of one 4-byte slot each. The other kinds are system calls. ServiceCidrs includes
// the writes of addresses that are excepted from the CIDRs.
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

// Total returns the sum over all kinds.
func (w Writes) Total() uint64 {
	return w.Frontends + w.Slots + w.Backends + w.Names + w.NodeAddrs + w.Sources + w.ServiceCidrs
}

// FlowStats are the counters of removed flows, and the fill of map flows at the last scan.
type FlowStats struct {
	// Expired counts flows that were closed, or not used for their timeout; Evicted those that
	// were removed before that, for room.
	Expired, Evicted uint64
	Fill             Fill
}

// Fill is how full a map is.
type Fill struct {
	// Map is the map's name; Flag is the flag of `shunt run` that sets its size.
	Map, Flag string
	// Used is the number of entries, Size the largest possible number.
	Used, Size uint32
}
