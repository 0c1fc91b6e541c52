// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	stdmaps "maps"
	"net/netip"
	"slices"
	"sync"
)

// Fake is Tables in memory, for tests without a kernel. It refuses the writes that the kernel's
// maps refuse. It also refuses two writes that would race with the programs on real maps: a
// backend of another service port into a slot that a frontend names, and another address into a
// used backend.
type Fake struct {
	sizes     Sizes
	frontends map[FrontendKey]Frontend
	slots     []uint32
	backends  []Backend
	names     map[uint32]Name
	nodeAddrs map[netip.Addr]uint32
	cidrs     map[netip.Prefix]bool
	allocated map[netip.Addr]bool
	sources   map[SourceRangeKey]bool
	// services counts the frontends that are entries of map services: all kinds but
	// UndefinedPort.
	services int
	// addrs counts, for each address, its frontends, and one more if it is the node's.
	addrs map[netip.Addr]int
	// naming counts, for each slot, the ranges of frontends that contain it.
	naming []uint32
}

// NodeAddrRoom returns how many addresses of the node fit beside those of frontends.
func NodeAddrRoom() int { return int(nodeAddrRoom()) }

var nodeAddrRoom = sync.OnceValue(func() uint32 {
	specs, err := Spec(DefaultSizes())
	if err != nil {
		return 0 // the object is embedded: only a broken build gets here, and Open says so
	}
	return specs[mapAddrs].MaxEntries - DefaultSizes().Services - DefaultSizes().Backends - leftAddrs
})

var _ Tables = (*Fake)(nil)

// NewFake returns empty maps of these sizes.
func NewFake(sizes Sizes) *Fake {
	return &Fake{
		sizes:     sizes,
		frontends: map[FrontendKey]Frontend{},
		slots:     make([]uint32, sizes.Slots),
		naming:    make([]uint32, sizes.Slots),
		backends:  make([]Backend, sizes.Backends),
		names:     map[uint32]Name{},
		nodeAddrs: map[netip.Addr]uint32{},
		cidrs:     map[netip.Prefix]bool{},
		allocated: map[netip.Addr]bool{},
		sources:   map[SourceRangeKey]bool{},
		addrs:     map[netip.Addr]int{},
	}
}

// Sizes returns the maps' sizes.
func (f *Fake) Sizes() Sizes { return f.sizes }

// SetFrontend adds or replaces an entry. Every backend in its slot ranges must be of its own
// service id.
func (f *Fake) SetFrontend(key FrontendKey, v Frontend) error {
	_, there := f.frontends[key]
	if !there {
		if err := f.room(key); err != nil {
			return fmt.Errorf("set frontend %s: %w", key, err)
		}
	}
	for _, r := range []SlotRange{v.Inside, v.Outside} {
		if uint64(r.Base)+uint64(r.Count) > uint64(len(f.slots)) {
			return fmt.Errorf("set frontend %s: slots %d+%d leave the array", key, r.Base, r.Count)
		}
		for _, id := range f.slots[r.Base : r.Base+r.Count] {
			if int(id) >= len(f.backends) {
				return fmt.Errorf("set frontend %s: slot names record %d: map backends has records 1 to %d",
					key, id, len(f.backends)-1)
			}
			if f.backends[id].ServiceId != v.Id || v.Id == 0 {
				return fmt.Errorf("set frontend %s of service id %d: slot names record %d of service id %d",
					key, v.Id, id, f.backends[id].ServiceId)
			}
		}
	}
	f.name(f.frontends[key], -1)
	f.name(v, 1)
	f.frontends[key] = v
	if !there {
		f.count(key, 1)
	}
	return nil
}

// room returns an error if a new frontend does not fit into services and addrs.
func (f *Fake) room(key FrontendKey) error {
	if key.Port != 0 && f.services >= int(f.sizes.Services) {
		return f.sizes.NewFullError(mapServices)
	}
	if a := key.AddrPort().Addr(); !a.IsUnspecified() {
		return f.addrRoom(a)
	}
	return nil
}

func (f *Fake) addrRoom(a netip.Addr) error {
	size := f.sizes.Services + nodeAddrRoom()
	if f.addrs[a] == 0 && len(f.addrs) >= int(size) {
		return &FullError{Map: mapAddrs, Flag: flagOf(mapAddrs), Size: size}
	}
	return nil
}

// count adds n (1 or -1) to the counts that a frontend is in.
func (f *Fake) count(key FrontendKey, n int) {
	if key.Port != 0 {
		f.services += n
	}
	if a := key.AddrPort().Addr(); !a.IsUnspecified() {
		f.countAddr(a, n)
	}
}

func (f *Fake) countAddr(a netip.Addr, n int) {
	if f.addrs[a] += n; f.addrs[a] <= 0 {
		delete(f.addrs, a)
	}
}

// name adds n (1 or -1) to the counts of the slots in a frontend's ranges.
func (f *Fake) name(v Frontend, n int) {
	for _, r := range []SlotRange{v.Inside, v.Outside} {
		for i := range r.Count {
			f.naming[r.Base+i] += uint32(n)
		}
	}
}

// DeleteFrontend removes an entry.
func (f *Fake) DeleteFrontend(key FrontendKey) error {
	f.name(f.frontends[key], -1)
	if _, there := f.frontends[key]; there {
		f.count(key, -1)
	}
	delete(f.frontends, key)
	return nil
}

// WriteSlots writes slots that no frontend names, or that a frontend of the same service port
// names.
func (f *Fake) WriteSlots(base uint32, ids []uint32) error {
	end := uint64(base) + uint64(len(ids))
	if end > uint64(len(f.slots)) {
		return fmt.Errorf("write %d slots from %d: map slots has %d", len(ids), base, len(f.slots))
	}
	for i, id := range ids {
		slot := int(base) + i
		if f.naming[slot] != 0 && (int(id) >= len(f.backends) || f.backends[id].ServiceId != f.backends[f.slots[slot]].ServiceId) {
			return fmt.Errorf("write record %d to slot %d: a frontend of another service names it", id, slot)
		}
	}
	copy(f.slots[base:], ids)
	return nil
}

// SetBackend writes a free backend, or changes the flags of a used one.
func (f *Fake) SetBackend(id uint32, b Backend) error {
	if id == 0 || int(id) >= len(f.backends) {
		return fmt.Errorf("set backend record %d: map backends has records 1 to %d", id, len(f.backends)-1)
	}
	if old := f.backends[id]; old.ServiceId != 0 {
		old.Flags = b.Flags
		if old != b {
			return fmt.Errorf("set backend record %d to %s: it is %s's", id, b.AddrPort(), old.AddrPort())
		}
	}
	f.backends[id] = b
	return nil
}

// FreeBackend clears the backend's service id.
func (f *Fake) FreeBackend(id uint32) error {
	if id == 0 || int(id) >= len(f.backends) {
		return fmt.Errorf("free backend record %d: map backends has records 1 to %d", id, len(f.backends)-1)
	}
	f.backends[id].ServiceId = 0
	return nil
}

// SetName sets the service port that a service id stands for.
func (f *Fake) SetName(id uint32, n Name) error {
	if _, err := newServiceName(n); err != nil {
		return err
	}
	if _, there := f.names[id]; !there && len(f.names) >= int(f.sizes.Services) {
		return fmt.Errorf("name service id %d %s: %w", id, n, f.sizes.NewFullError(mapNames))
	}
	f.names[id] = n
	return nil
}

// DeleteName removes the name of a service id.
func (f *Fake) DeleteName(id uint32) error {
	delete(f.names, id)
	return nil
}

// SetNodeAddr adds an address that takes node ports.
func (f *Fake) SetNodeAddr(a netip.Addr, flags uint32) error {
	if _, there := f.nodeAddrs[a]; !there {
		if err := f.addrRoom(a); err != nil {
			return fmt.Errorf("mark address %s: %w", a, err)
		}
		f.countAddr(a, 1)
	}
	f.nodeAddrs[a] = flags
	return nil
}

// DeleteNodeAddr removes an address.
func (f *Fake) DeleteNodeAddr(a netip.Addr) error {
	if _, there := f.nodeAddrs[a]; there {
		f.countAddr(a, -1)
	}
	delete(f.nodeAddrs, a)
	return nil
}

// SetSourceRange adds a source range.
func (f *Fake) SetSourceRange(k SourceRangeKey) error {
	if err := k.check(); err != nil {
		return err
	}
	if !f.sources[k] && !f.sourceRangeRoom() {
		return fmt.Errorf("add source range %s: %w", k, f.sizes.NewFullError(mapSources))
	}
	f.sources[k] = true
	return nil
}

// sourceRangeRoom reports whether map sources has room for another entry.
func (f *Fake) sourceRangeRoom() bool {
	return len(f.sources)+len(f.cidrs)+len(f.allocated) < int(f.sizes.Sources)
}

// DeleteSourceRange removes a source range.
func (f *Fake) DeleteSourceRange(k SourceRangeKey) error {
	delete(f.sources, k)
	return nil
}

// Dump returns a copy of everything.
func (f *Fake) Dump() (*Dump, error) {
	d := &Dump{
		Frontends:    stdmaps.Clone(f.frontends),
		Slots:        slices.Clone(f.slots),
		Backends:     map[uint32]Backend{},
		Names:        stdmaps.Clone(f.names),
		NodeAddrs:    stdmaps.Clone(f.nodeAddrs),
		ServiceCIDRs: slices.SortedFunc(stdmaps.Keys(f.cidrs), netip.Prefix.Compare),
		Allocated:    slices.SortedFunc(stdmaps.Keys(f.allocated), netip.Addr.Compare),
		Sources:      stdmaps.Clone(f.sources),
	}
	for id, be := range f.backends {
		if be.ServiceId != 0 {
			d.Backends[uint32(id)] = be
		}
	}
	return d, nil
}
