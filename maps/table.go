// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"slices"
)

// sizeFlag is a flag of `shunt run` that sets the number of entries of maps. The default is what
// maps.h declares for the first map of the table with this flag. minEntries and maxEntries bound it.
type sizeFlag struct {
	flag, help string
	// of returns the field of Sizes.
	of func(*Sizes) *uint32
}

// The bounds of every size. An array of maxEntries backends, of 24 bytes each, takes 1.6 GB.
const (
	minEntries = 16
	maxEntries = 1 << 26
)

var (
	sizeServices = &sizeFlag{FlagServices, "frontends that fit: one for every address and port of a service",
		func(s *Sizes) *uint32 { return &s.Services }}
	sizeSlots = &sizeFlag{FlagSlots, "slots that fit: a service port takes the next power of two above its endpoints, " +
		"twice while it changes", func(s *Sizes) *uint32 { return &s.Slots }}
	sizeBackends = &sizeFlag{FlagBackends, "endpoints of service ports that fit",
		func(s *Sizes) *uint32 { return &s.Backends }}
	sizeAffinity = &sizeFlag{FlagAffinity, "clients with session affinity that are remembered",
		func(s *Sizes) *uint32 { return &s.Affinity }}
	sizeSources = &sizeFlag{FlagSources, "ranges of loadBalancerSourceRanges that fit, of all service ports together",
		func(s *Sizes) *uint32 { return &s.Sources }}
	sizeFlows = &sizeFlag{FlagFlows, "entries of flows from outside that fit, two a flow, and three where the endpoint " +
		"is on another node", func(s *Sizes) *uint32 { return &s.Flows }}
)

// fate is the treatment of a map's contents when a new set replaces the set of an older daemon.
type fate uint8

const (
	// lost: the map of the new set is empty.
	lost fate = iota
	// copied: carryOver copies the entries, if both sets have one ABI.
	copied
	// shared: both sets have the same map, if its type, key size, value size and number of
	// entries are those of the new set. Only programs fill such a map, so that the daemon could
	// not fill a new one.
	shared
	// sharedInABI: as shared, but only if both sets have one ABI. The values have ids of other
	// maps.
	sharedInABI
)

// tableRow has the properties of one map that Go code uses. maps.h declares type, flags and
// number of entries.
type tableRow struct {
	name string
	// key and value are zero values of the Go types of an entry. value is nil if only programs
	// use the value: Go has no type for it then.
	key, value any
	// element is a zero value of the Go type of an element, if Kernel maps the array into memory.
	element any
	fate    fate
	// sizes are the flags that change the number of entries. Errors name the first.
	sizes []*sizeFlag
	// used counts entries for `shunt status`, which does not show a map whose used is nil. d is a
	// dump of the same maps.
	used func(k *Kernel, d *Dump) (uint32, error)
}

// table has a row for each map of maps.h, in the order in which they are made. It is the only
// list of the maps' properties in Go: flags, sizes, carry-over, layout and status derive from it.
var table = []tableRow{
	{name: mapServices, key: FrontendKey{}, value: Frontend{}, fate: copied, sizes: flags(sizeServices), used: servicesUsed},
	{name: mapSlots, key: uint32(0), value: uint32(0), element: slot{}, fate: copied, sizes: flags(sizeSlots), used: slotsUsed},
	{name: mapBackends, key: uint32(0), value: Backend{}, element: Backend{}, fate: copied, sizes: flags(sizeBackends),
		used: func(_ *Kernel, d *Dump) (uint32, error) { return uint32(len(d.Backends)), nil }},
	{name: mapBackendStats, key: uint32(0), value: uint64(0), element: uint64(0), fate: copied, sizes: flags(sizeBackends)},
	{name: mapSockPeer, key: uint32(0), value: SockFlow{}, fate: shared},
	{name: mapSockBefore, key: uint32(0), value: SockFlow{}, fate: shared},
	{name: mapSockFlows, key: uint32(0), fate: shared},
	{name: mapLocalPorts, key: abiLocalPortKey{}, value: uint64(0), fate: shared},
	{name: mapAffinity, key: AffinityKey{}, value: AffinityValue{}, fate: copied, sizes: flags(sizeAffinity),
		used: func(k *Kernel, _ *Dump) (uint32, error) { return k.AffinityUsed() }},
	{name: mapAddrs, key: abiAddr{}, value: abiAddrInfo{}, fate: copied, sizes: flags(sizeServices, sizeBackends)},
	{name: mapSources, key: SourceRangeKey{}, value: uint8(0), fate: copied, sizes: flags(sizeSources),
		used: func(_ *Kernel, d *Dump) (uint32, error) { return uint32(len(d.Sources) + len(d.ServiceCIDRs)), nil }},
	{name: mapClientAddrs, key: abiClientKey{}, value: abiClientAddr{}, fate: lost, used: clientAddrsUsed},
	{name: mapFlows, key: FlowKey{}, value: Flow{}, fate: sharedInABI, sizes: flags(sizeFlows),
		used: func(k *Kernel, _ *Dump) (uint32, error) { return k.FlowsUsed() }},
	{name: mapFlowsNew, key: FlowKey{}, value: Flow{}, fate: sharedInABI},
	{name: mapDirects, key: FlowKey{}, value: uint64(0), fate: sharedInABI},
	{name: mapClaims, key: FlowKey{}, value: uint8(0), fate: lost},
	{name: mapFragments, key: abiFragmentKey{}, value: abiFragment{}, fate: lost},
	{name: mapDevices, key: uint32(0), value: abiDevice{}, fate: lost},
	{name: mapNames, key: uint32(0), value: abiServiceName{}, fate: copied, sizes: flags(sizeServices)},
	{name: mapCounters, key: uint32(0), value: uint64(0), fate: shared},
	{name: mapMeta, key: uint32(0), value: Meta{}, element: Meta{}, fate: lost},
	{name: mapProblems, key: uint32(0), value: abiProblem{}, element: abiProblem{}, fate: lost},
}

func flags(all ...*sizeFlag) []*sizeFlag { return all }

// sizeFlags returns the flags that a row names first, in the order of the table.
func sizeFlags() []*sizeFlag {
	var all []*sizeFlag
	for _, row := range table {
		if len(row.sizes) > 0 && !slices.Contains(all, row.sizes[0]) {
			all = append(all, row.sizes[0])
		}
	}
	return all
}

// rowOf returns a map's row. For an unknown name it returns a row without sizes.
func rowOf(name string) tableRow {
	if i := slices.IndexFunc(table, func(r tableRow) bool { return r.name == name }); i >= 0 {
		return table[i]
	}
	return tableRow{name: name}
}

// sizesFrom returns the Sizes of a set, by the number of entries of each map.
func sizesFrom(entries func(name string) uint32) Sizes {
	var s Sizes
	for _, f := range sizeFlags() {
		first := slices.IndexFunc(table, func(r tableRow) bool { return len(r.sizes) > 0 && r.sizes[0] == f })
		*f.of(&s) = entries(table[first].name)
	}
	return s
}

// Validate returns an error for sizes outside the bounds, which names the flag.
func (s Sizes) Validate() error {
	for _, f := range sizeFlags() {
		if n := *f.of(&s); n < minEntries || n > maxEntries {
			return fmt.Errorf("%s is %d: give a number of entries from %d to %d", f.flag, n, minEntries, maxEntries)
		}
	}
	return nil
}

// EachFlag calls visit for every flag that sets a size, with the field that it sets and its help.
func (s *Sizes) EachFlag(visit func(field *uint32, flag, help string)) {
	for _, f := range sizeFlags() {
		visit(f.of(s), f.flag, f.help)
	}
}

// flagOf returns the flag that sets the size of the map with this name, or "".
func flagOf(name string) string {
	if row := rowOf(name); len(row.sizes) > 0 {
		return row.sizes[0].flag
	}
	return ""
}

// of returns the size that a flag sets for the map with this name, or 0 if no flag does.
func (s Sizes) of(name string) uint32 {
	if row := rowOf(name); len(row.sizes) > 0 {
		return *row.sizes[0].of(&s)
	}
	return 0
}

// NewFullError returns the FullError of a map, by its name.
func (s Sizes) NewFullError(name string) *FullError {
	return &FullError{Map: name, Flag: flagOf(name), Size: s.of(name)}
}

// FillOf returns the Fill of each map that used has a key for, in the order of the table.
func (s Sizes) FillOf(used map[string]uint32) []Fill {
	all := make([]Fill, 0, len(used))
	for _, row := range table {
		if n, has := used[row.name]; has {
			all = append(all, Fill{Map: row.name, Flag: flagOf(row.name), Used: n, Size: s.of(row.name)})
		}
	}
	return all
}

// Fill returns the Fill of each map that `shunt status` shows. d is a dump of these maps.
func (k *Kernel) Fill(d *Dump) ([]Fill, error) {
	var all []Fill
	for _, row := range table {
		if row.used == nil {
			continue
		}
		n, err := row.used(k, d)
		if err != nil {
			return nil, err
		}
		all = append(all, Fill{Map: row.name, Flag: flagOf(row.name), Used: n, Size: k.set.maps[row.name].MaxEntries()})
	}
	return all, nil
}

// servicesUsed returns the number of entries in map services. A frontend of kind UndefinedPort
// (all other ports of a cluster IP) has no entry there.
func servicesUsed(_ *Kernel, d *Dump) (uint32, error) {
	var n uint32
	for _, svc := range d.Frontends {
		if FrontendKind(svc.Kind) != UndefinedPort {
			n++
		}
	}
	return n, nil
}

// slotsUsed returns the number of slots in the slot ranges of frontends, each counted once.
func slotsUsed(_ *Kernel, d *Dump) (uint32, error) {
	seen := map[uint32]uint32{}
	for _, svc := range d.Frontends {
		for _, r := range []SlotRange{svc.Inside, svc.Outside} {
			seen[r.Base] = max(seen[r.Base], r.Count)
		}
	}
	var n uint32
	for _, count := range seen {
		n += count
	}
	return n, nil
}

func clientAddrsUsed(k *Kernel, _ *Dump) (uint32, error) {
	all, err := k.ClientAddrs()
	return uint32(len(all)), err
}
