// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	stdmaps "maps"
	"net/netip"
	"slices"
	"strings"
)

// Dump is the contents of the maps. While a daemon writes, its parts may be of different
// moments.
type Dump struct {
	Frontends map[FrontendKey]Frontend
	// Slots is the whole array: backend ids by slot.
	Slots []uint32
	// Backends are the used backends, by id.
	Backends map[uint32]Backend
	Names    map[uint32]Name
	// NodeAddrs are the addresses that take node ports, with HostNetns or 0.
	NodeAddrs map[netip.Addr]uint32
	// ServiceCIDRs is sorted.
	ServiceCIDRs []netip.Prefix
	// Allocated are the addresses that are excepted from ServiceCIDRs, sorted.
	Allocated []netip.Addr
	// Sources are the source ranges.
	Sources map[SourceRangeKey]bool
}

// SourceRangesOf returns the source ranges of a service id, sorted.
func (d *Dump) SourceRangesOf(serviceID uint32) []netip.Prefix {
	var ranges []netip.Prefix
	for k := range d.Sources {
		if p := k.Prefix(); k.ServiceId == serviceID && p.IsValid() {
			ranges = append(ranges, p)
		}
	}
	slices.SortFunc(ranges, netip.Prefix.Compare)
	return ranges
}

// Range returns the backend ids in a slot range, or an error where it exceeds the array.
func (d *Dump) Range(r SlotRange) ([]uint32, error) {
	end := uint64(r.Base) + uint64(r.Count)
	if end > uint64(len(d.Slots)) {
		return nil, fmt.Errorf("slots %d to %d of %d", r.Base, end, len(d.Slots))
	}
	return d.Slots[r.Base:end], nil
}

// SortedFrontends returns the keys, sorted by address, port and protocol.
func (d *Dump) SortedFrontends() []FrontendKey {
	keys := make([]FrontendKey, 0, len(d.Frontends))
	for k := range d.Frontends {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareFrontends)
	return keys
}

func compareFrontends(a, b FrontendKey) int {
	if c := a.AddrPort().Compare(b.AddrPort()); c != 0 {
		return c
	}
	return int(a.Protocol) - int(b.Protocol)
}

// Text returns the dump with ids resolved, one sorted line an entry. It is equal for maps with
// the same behaviour, whatever the order of writes. Tests compare it, people read it.
func (d *Dump) Text() string {
	var b strings.Builder
	for _, k := range d.SortedFrontends() {
		fmt.Fprintln(&b, d.frontendText(k, d.Frontends[k]))
	}
	var backends []string
	for _, be := range d.Backends {
		backends = append(backends, fmt.Sprintf("backend %s of %s%s",
			be.AddrPort(), d.nameOf(be.ServiceId), backendFlagText(be.Flags)))
	}
	slices.Sort(backends)
	for _, line := range backends {
		fmt.Fprintln(&b, line)
	}
	for _, line := range d.sourceTexts() {
		fmt.Fprintln(&b, line)
	}
	addrs := make([]netip.Addr, 0, len(d.NodeAddrs))
	for a := range d.NodeAddrs {
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range addrs {
		own := ""
		if d.NodeAddrs[a]&HostNetns != 0 {
			own = " own-netns"
		}
		fmt.Fprintf(&b, "node-addr %s%s\n", a, own)
	}
	for _, p := range d.ServiceCIDRs {
		fmt.Fprintf(&b, "service-cidr %s\n", p)
	}
	for _, a := range d.Allocated {
		fmt.Fprintf(&b, "allocated %s\n", a)
	}
	return b.String()
}

// Lasting returns the dump without the backends that are retained only for existing flows and
// connections: those of unready endpoints, and those whose port name has changed. A daemon that
// starts with empty maps makes none of them.
func (d *Dump) Lasting() *Dump {
	lasting := *d
	lasting.Backends = stdmaps.Clone(d.Backends)
	stdmaps.DeleteFunc(lasting.Backends, func(_ uint32, b Backend) bool { return b.Flags&(Unready|Renamed) != 0 })
	return &lasting
}

func (d *Dump) sourceTexts() []string {
	var lines []string
	for k := range d.Sources {
		from := k.String()
		if p := k.Prefix(); p.IsValid() {
			from = p.String() + " of " + d.nameOf(k.ServiceId)
		}
		lines = append(lines, "source "+from)
	}
	slices.Sort(lines)
	return lines
}

func (d *Dump) frontendText(k FrontendKey, s Frontend) string {
	line := fmt.Sprintf("frontend %s %s", k, FrontendKind(s.Kind))
	if FrontendKind(s.Kind) == UndefinedPort {
		return line
	}
	line += " of " + d.nameOf(s.Id)
	if s.AffinitySeconds != 0 {
		line += fmt.Sprintf(" affinity %ds", s.AffinitySeconds)
	}
	line += " inside" + d.rangeText(s.Inside, s.Flags&InsideLocal != 0)
	line += " outside" + d.rangeText(s.Outside, s.Flags&OutsideLocal != 0)
	if s.Flags&Elsewhere != 0 {
		line += " elsewhere"
	}
	if s.Flags&SourceRanges != 0 {
		line += " source-ranges"
	}
	return line
}

func (d *Dump) nameOf(id uint32) string {
	n, ok := d.Names[id]
	if !ok {
		return fmt.Sprintf("unnamed service %d", id)
	}
	return n.String()
}

func (d *Dump) rangeText(r SlotRange, local bool) string {
	set := "=cluster["
	if local {
		set = "=local["
	}
	ids, err := d.Range(r)
	if err != nil {
		return set + "invalid: " + err.Error() + "]"
	}
	var to []string
	for _, id := range ids {
		be, ok := d.Backends[id]
		if !ok {
			to = append(to, fmt.Sprintf("free record %d", id))
			continue
		}
		to = append(to, be.AddrPort().String())
	}
	slices.Sort(to)
	return set + strings.Join(to, " ") + "]"
}

func backendFlagText(flags uint8) string {
	var s string
	for _, f := range []struct {
		flag uint8
		text string
	}{{ClusterSet, " cluster"}, {LocalSet, " local"}, {OnNode, " on-node"}, {Terminating, " terminating"},
		{Unready, " unready"}, {Renamed, " renamed"}} {
		if flags&f.flag != 0 {
			s += f.text
		}
	}
	return s
}
