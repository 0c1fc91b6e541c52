// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"

	"shunt/maps"
)

// frontend is a frontend of a service port. The unspecified address of a family stands for
// the node's addresses, as in map services.
type frontend struct {
	addr     netip.AddrPort
	proto    uint8
	kind     maps.FrontendKind
	service  uint32
	affinity uint32 // seconds; 0 means none
	flags    uint16
	// inside and outside are backend ids, one for each slot.
	inside, outside []uint32
}

type frontendKey struct {
	addr  netip.AddrPort
	proto uint8
}

func (f frontend) key() frontendKey { return frontendKey{f.addr, f.proto} }

// endpoint is a backend: a record of map backends.
type endpoint struct {
	addr    netip.AddrPort
	proto   uint8
	flags   uint8
	service uint32
}

// world is what a daemon would have written to the maps.
type world struct {
	frontends map[frontendKey]frontend
	backends  map[uint32]endpoint
	// nodeAddrs take node ports; true means only from the node's own sockets.
	nodeAddrs  map[netip.Addr]bool
	clusterIPs map[netip.Addr]bool
	sources    map[uint32][]netip.Prefix
	// cidrs are service CIDRs: addresses in them without a service are unallocated.
	cidrs map[netip.Prefix]bool
	// allocated are the exceptions: addresses of other proxies' services.
	allocated map[netip.Addr]bool
	// devices holds the SNAT addresses by interface index, one of each family.
	devices map[uint32][2]netip.Addr
	// resets: no other program translates connections to frontends.
	resets bool
}

func newWorld() *world {
	return &world{
		frontends: map[frontendKey]frontend{}, backends: map[uint32]endpoint{}, nodeAddrs: map[netip.Addr]bool{},
		clusterIPs: map[netip.Addr]bool{}, sources: map[uint32][]netip.Prefix{}, devices: map[uint32][2]netip.Addr{},
		cidrs: map[netip.Prefix]bool{}, allocated: map[netip.Addr]bool{},
	}
}

// add adds frontend f, and backends by their ids. Where f.inside or f.outside is nil, that set
// becomes all of them.
func (w *world) add(f frontend, backends map[uint32]endpoint) {
	ids := make([]uint32, 0, len(backends))
	for id, b := range backends {
		b.service, b.proto = f.service, f.proto
		w.backends[id] = b
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if f.inside == nil {
		f.inside = ids
	}
	if f.outside == nil {
		f.outside = ids
	}
	w.frontends[f.key()] = f
}

// load makes the maps hold this world. It writes only differences. Slots are allocated in
// order; when they are used up, all frontends get new ones.
func (r *rig) load(w *world) {
	r.t.Helper()
	var errs []error
	for _, f := range w.frontends { // as lb does: programs search in them
		for _, ids := range [][]uint32{f.inside, f.outside} {
			slices.SortStableFunc(ids, func(a, b uint32) int { return w.backends[a].addr.Compare(w.backends[b].addr) })
		}
	}
	again := r.slotsUsedUp(w)
	for id := range r.loaded.backends {
		if _, ok := w.backends[id]; !ok {
			errs = append(errs, r.kernel.FreeBackend(id))
		}
	}
	for id, b := range w.backends {
		if b == r.loaded.backends[id] {
			continue
		}
		errs = append(errs, r.kernel.SetBackend(id, maps.NewBackend(b.addr, b.proto, b.flags, b.service)))
	}
	for k, f := range w.frontends {
		if !again && reflect.DeepEqual(f, r.loaded.frontends[k]) {
			continue
		}
		errs = append(errs, r.kernel.SetFrontend(maps.NewFrontendKey(f.addr.Addr(), f.addr.Port(), f.proto), maps.Frontend{
			Id: f.service, AffinitySeconds: f.affinity, Flags: f.flags, Kind: uint8(f.kind),
			Inside: r.slots(f.inside), Outside: r.slots(f.outside),
		}))
	}
	for k, f := range r.loaded.frontends {
		if _, ok := w.frontends[k]; !ok {
			errs = append(errs, r.kernel.DeleteFrontend(maps.NewFrontendKey(f.addr.Addr(), f.addr.Port(), f.proto)))
		}
	}
	errs = append(errs, r.loadAddrs(w), r.loadRest(w))
	if err := errors.Join(errs...); err != nil {
		r.t.Fatal(err)
	}
	r.loaded = w.clone()
}

// slotsUsedUp reports whether too few slots may be left for this world. If so, it starts
// again with the first slot.
func (r *rig) slotsUsedUp(w *world) bool {
	need := r.nextSlot
	for _, f := range w.frontends {
		need += uint32(len(f.inside) + len(f.outside))
	}
	if need <= r.sizes.Slots {
		return false
	}
	r.nextSlot = 0
	return true
}

func (r *rig) slots(ids []uint32) maps.SlotRange {
	if len(ids) == 0 {
		return maps.SlotRange{}
	}
	base := r.nextSlot
	r.nextSlot += uint32(len(ids))
	if err := r.kernel.WriteSlots(base, ids); err != nil {
		r.t.Fatal(err)
	}
	return maps.SlotRange{Base: base, Count: uint32(len(ids))}
}

func (r *rig) loadAddrs(w *world) error {
	var errs []error
	for a := range r.loaded.nodeAddrs {
		if _, ok := w.nodeAddrs[a]; !ok {
			errs = append(errs, r.kernel.DeleteNodeAddr(a))
		}
	}
	for a, own := range w.nodeAddrs {
		flags := uint32(0)
		if own {
			flags = maps.HostNetns
		}
		errs = append(errs, r.kernel.SetNodeAddr(a, flags))
	}
	for a := range r.loaded.clusterIPs {
		if !w.clusterIPs[a] {
			errs = append(errs, r.kernel.DeleteFrontend(maps.NewFrontendKey(a, 0, 0)))
		}
	}
	for a := range w.clusterIPs {
		errs = append(errs, r.kernel.SetFrontend(maps.NewFrontendKey(a, 0, 0), maps.Frontend{Kind: uint8(maps.UndefinedPort)}))
	}
	return errors.Join(errs...)
}

func (r *rig) loadRest(w *world) error {
	var errs []error
	for id, ranges := range r.loaded.sources {
		for _, p := range ranges {
			if !slices.Contains(w.sources[id], p) {
				errs = append(errs, r.kernel.DeleteSourceRange(maps.NewSourceRangeKey(id, p)))
			}
		}
	}
	for id, ranges := range w.sources {
		for _, p := range ranges {
			errs = append(errs, r.kernel.SetSourceRange(maps.NewSourceRangeKey(id, p)))
		}
	}
	for p := range r.loaded.cidrs {
		if !w.cidrs[p] {
			errs = append(errs, r.kernel.DeleteServiceCIDR(p))
		}
	}
	for p := range w.cidrs {
		if !r.loaded.cidrs[p] {
			errs = append(errs, r.kernel.SetServiceCIDR(p))
		}
	}
	for a := range r.loaded.allocated {
		if !w.allocated[a] {
			errs = append(errs, r.kernel.DeleteAllocated(a))
		}
	}
	for a := range w.allocated {
		errs = append(errs, r.kernel.SetAllocated(a))
	}
	for i := range r.loaded.devices {
		if _, ok := w.devices[i]; !ok {
			errs = append(errs, r.kernel.DeleteDevice(i))
		}
	}
	for i, a := range w.devices {
		d := maps.NewDevice(a[0], a[1])
		if w.resets {
			d.Flags = maps.DeviceResets
		}
		errs = append(errs, r.kernel.SetDevice(i, d))
	}
	return errors.Join(errs...)
}

func (w *world) clone() *world {
	c := newWorld()
	c.resets = w.resets
	for k, v := range w.frontends {
		v.inside, v.outside = slices.Clone(v.inside), slices.Clone(v.outside)
		c.frontends[k] = v
	}
	for k, v := range w.backends {
		c.backends[k] = v
	}
	for k, v := range w.nodeAddrs {
		c.nodeAddrs[k] = v
	}
	for k, v := range w.clusterIPs {
		c.clusterIPs[k] = v
	}
	for k, v := range w.sources {
		c.sources[k] = slices.Clone(v)
	}
	for k, v := range w.devices {
		c.devices[k] = v
	}
	for k := range w.cidrs {
		c.cidrs[k] = true
	}
	for k := range w.allocated {
		c.allocated[k] = true
	}
	return c
}
