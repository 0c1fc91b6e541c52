// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Dump is everything that the maps hold, read at one time; while a daemon
// writes, parts of it may be of different moments.
type Dump struct {
	Frontends map[FrontendKey]Service
	// Slots is the whole array: backend ids by slot.
	Slots []uint32
	// Backends holds the records that are somebody's, by id.
	Backends map[uint32]Backend
	Names    map[uint32]Name
	// NodeAddrs maps to flags.
	NodeAddrs map[netip.Addr]uint32
	// ServiceCIDRs is sorted.
	ServiceCIDRs []netip.Prefix
	// Allocated are the addresses that are excepted from ServiceCIDRs, sorted.
	Allocated []netip.Addr
	// Sources has the ranges of clients that load-balancer IPs let in.
	Sources map[SourceKey]bool
}

// SourcesOf gives the ranges of clients of a service id, sorted.
func (d *Dump) SourcesOf(serviceID uint32) []netip.Prefix {
	var ranges []netip.Prefix
	for k := range d.Sources {
		if p := k.Prefix(); k.ServiceId == serviceID && p.IsValid() {
			ranges = append(ranges, p)
		}
	}
	slices.SortFunc(ranges, netip.Prefix.Compare)
	return ranges
}

// Range gives the backend ids in a range, or an error where it leaves the array.
func (d *Dump) Range(r SlotRange) ([]uint32, error) {
	end := uint64(r.Base) + uint64(r.Count)
	if end > uint64(len(d.Slots)) {
		return nil, fmt.Errorf("slots %d to %d of %d", r.Base, end, len(d.Slots))
	}
	return d.Slots[r.Base:end], nil
}

// SortedFrontends gives the keys by address, port and protocol.
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

// Text is the dump with ids resolved, sorted, a line an entry: equal for equal
// behaviour, whatever order things came in. Tests compare it, people read it.
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
		if d.NodeAddrs[a]&OwnNetns != 0 {
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

// Lasting returns the dump without the records that are kept for flows and connections
// from before, of unready endpoints and of those that are listed under another name: a
// daemon that starts with empty maps makes none.
func (d *Dump) Lasting() *Dump {
	lasting := *d
	lasting.Backends = maps.Clone(d.Backends)
	maps.DeleteFunc(lasting.Backends, func(_ uint32, b Backend) bool { return b.Flags&(Unready|Renamed) != 0 })
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

func (d *Dump) frontendText(k FrontendKey, s Service) string {
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
