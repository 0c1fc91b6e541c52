// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"shunt/maps"
)

// guard is Tables that checks the maps after every single write, as a program in the kernel could
// see them at that moment. It fails the test where a program would use wrong data.
type guard struct {
	maps.Tables
	t     testing.TB
	clock *testClock
	// serving are entries that must have endpoints at every moment of the reconcile under way.
	serving map[maps.FrontendKey]sides
	// admits says, for an entry, which clients it must and must not admit at every moment of the
	// reconcile under way.
	admits map[maps.FrontendKey]map[netip.Addr]bool
	// freed is when a backend was freed; unnamed is when a slot was last named by an entry.
	freed   map[uint32]time.Time
	unnamed map[uint32]time.Time
	// named are the slots in the ranges of entries now. writes counts the writes of each kind.
	named  map[uint32]bool
	writes maps.Writes
	// tight: maps are full, so that a slot range may be overwritten while an entry names it.
	tight bool
	// shut are entries that have admitted no client since map sources was full.
	shut map[maps.FrontendKey]bool
	// wrong are entries that were wrong already when the guard started.
	wrong map[maps.FrontendKey]bool
}

// sides says whether an entry has endpoints inside and outside.
type sides struct{ inside, outside bool }

func newGuard(t testing.TB, tables maps.Tables, clock *testClock) *guard {
	return &guard{Tables: tables, t: t, clock: clock,
		freed: map[uint32]time.Time{}, unnamed: map[uint32]time.Time{}, named: map[uint32]bool{}}
}

// did checks the maps after a write. An error other than for a full map fails the test: the loop
// should not have tried that write.
func (g *guard) did(what string, err error) error {
	g.t.Helper()
	var full *maps.FullError
	if err != nil && !errors.As(err, &full) {
		g.t.Errorf("%s: %v", what, err)
	}
	d, _ := g.Dump()
	named := map[uint32]bool{}
	for k, v := range d.Frontends {
		for _, r := range []maps.SlotRange{v.Inside, v.Outside} {
			if !g.wrong[k] {
				g.checkRange(what, d, k, v, r)
			}
			for slot := uint64(r.Base); slot < min(uint64(r.Base)+uint64(r.Count), uint64(len(d.Slots))); slot++ {
				named[uint32(slot)] = true
			}
		}
	}
	for k, want := range g.serving {
		v := d.Frontends[k]
		if want.inside && v.Inside.Count == 0 || want.outside && v.Outside.Count == 0 {
			g.t.Errorf("after %s: frontend %s has no endpoint for a moment, want some %+v:\n%s", what, k, want, d.Text())
			delete(g.serving, k) // report it once
		}
	}
	g.checkSourceRanges(what, d)
	for slot := range g.named {
		if !named[slot] {
			g.unnamed[slot] = g.clock.t
		}
	}
	g.named = named
	return err
}

func (g *guard) checkRange(what string, d *maps.Dump, k maps.FrontendKey, v maps.Frontend, r maps.SlotRange) {
	g.t.Helper()
	ids, err := d.Range(r)
	if err != nil {
		g.t.Errorf("after %s: frontend %s: %v", what, k, err)
	}
	for _, id := range ids {
		if be, used := d.Backends[id]; !used || be.ServiceId != v.Id || be.Protocol != k.Protocol {
			g.t.Errorf("after %s: frontend %s of service id %d leads to record %d: used %t, %+v", what, k, v.Id, id, used, be)
		}
	}
	if _, named := d.Names[v.Id]; v.Id != 0 && !named {
		g.t.Errorf("after %s: frontend %s is of service id %d, which has no name", what, k, v.Id)
	}
}

// probes are clients from outside, in and out of the tests' source ranges.
var probes = addrs("203.0.113.1", "198.51.100.1", "192.168.0.9", "1.1.1.2", "2001:db8:1::1", "fd00:1::9")

func letsIn(d *maps.Dump, v maps.Frontend, client netip.Addr) bool {
	return v.Flags&maps.SourceRanges == 0 ||
		slices.ContainsFunc(d.SourceRangesOf(v.Id), func(p netip.Prefix) bool { return p.Contains(client) })
}

// checkSourceRanges checks that a client that is admitted before and after the reconcile is admitted
// throughout, and that one that is refused before and after is never admitted.
func (g *guard) checkSourceRanges(what string, d *maps.Dump) {
	g.t.Helper()
	for k, clients := range g.admits {
		for client, want := range clients {
			if v, there := d.Frontends[k]; there && letsIn(d, v, client) != want {
				g.t.Errorf("after %s: frontend %s lets %s in for a moment: %t:\n%s", what, k, client, !want, d.Text())
				delete(g.admits, k)
			}
		}
	}
	// In a full map a range may be deleted before another is added: that needs room for one. If
	// that write fails, the frontend admits no client until its service is tried again, whatever
	// room there is meanwhile.
	room := int(g.Sizes().Sources) - len(d.Sources) - len(d.ServiceCIDRs) - len(d.Allocated)
	shut := map[maps.FrontendKey]bool{}
	for k, v := range d.Frontends {
		if v.Flags&maps.SourceRanges == 0 || g.wrong[k] || len(d.SourceRangesOf(v.Id)) > 0 {
			continue
		}
		shut[k] = true
		if room > 1 && !g.shut[k] {
			g.t.Errorf("after %s: frontend %s lets nobody in:\n%s", what, k, d.Text())
		}
	}
	g.shut = shut
}

func (g *guard) SetSourceRange(k maps.SourceRangeKey) error {
	g.t.Helper()
	g.writes.Sources++
	return g.did(fmt.Sprintf("SetSourceRange(%s)", k), g.Tables.SetSourceRange(k))
}

func (g *guard) DeleteSourceRange(k maps.SourceRangeKey) error {
	g.t.Helper()
	g.writes.Sources++
	return g.did(fmt.Sprintf("DeleteSourceRange(%s)", k), g.Tables.DeleteSourceRange(k))
}

func (g *guard) SetFrontend(k maps.FrontendKey, v maps.Frontend) error {
	g.t.Helper()
	g.writes.Frontends++
	delete(g.wrong, k)
	return g.did(fmt.Sprintf("SetFrontend(%s, %+v)", k, v), g.Tables.SetFrontend(k, v))
}

func (g *guard) DeleteFrontend(k maps.FrontendKey) error {
	g.t.Helper()
	g.writes.Frontends++
	return g.did(fmt.Sprintf("DeleteFrontend(%s)", k), g.Tables.DeleteFrontend(k))
}

func (g *guard) WriteSlots(base uint32, ids []uint32) error {
	g.t.Helper()
	g.writes.Slots += uint64(len(ids))
	what := fmt.Sprintf("WriteSlots(%d, %v)", base, ids)
	for i := range ids {
		slot := base + uint32(i)
		if g.tight { // then the fake decides
			continue
		}
		if g.named[slot] {
			g.t.Errorf("%s: an entry names slot %d", what, slot)
		}
		if since, was := g.unnamed[slot]; was && g.clock.t.Before(since.Add(grace)) {
			g.t.Errorf("%s: slot %d was named until %s ago", what, slot, g.clock.t.Sub(since))
		}
	}
	return g.did(what, g.Tables.WriteSlots(base, ids))
}

func (g *guard) SetBackend(id uint32, b maps.Backend) error {
	g.t.Helper()
	g.writes.Backends++
	what := fmt.Sprintf("SetBackend(%d, %s of %d)", id, b.AddrPort(), b.ServiceId)
	if since, was := g.freed[id]; was && g.clock.t.Before(since.Add(grace)) {
		g.t.Errorf("%s: the record was in use until %s ago", what, g.clock.t.Sub(since))
	}
	delete(g.freed, id)
	if b.ServiceId == 0 {
		g.t.Errorf("%s: of no service", what)
	}
	return g.did(what, g.Tables.SetBackend(id, b))
}

func (g *guard) FreeBackend(id uint32) error {
	g.t.Helper()
	g.writes.Backends++
	g.freed[id] = g.clock.t
	return g.did(fmt.Sprintf("FreeBackend(%d)", id), g.Tables.FreeBackend(id))
}

func (g *guard) SetName(id uint32, n maps.Name) error {
	g.t.Helper()
	g.writes.Names++
	return g.did(fmt.Sprintf("SetName(%d, %s)", id, n), g.Tables.SetName(id, n))
}

func (g *guard) DeleteName(id uint32) error {
	g.t.Helper()
	g.writes.Names++
	return g.did(fmt.Sprintf("DeleteName(%d)", id), g.Tables.DeleteName(id))
}

func (g *guard) SetNodeAddr(a netip.Addr, flags uint32) error {
	g.t.Helper()
	g.writes.NodeAddrs++
	return g.did("SetNodeAddr", g.Tables.SetNodeAddr(a, flags))
}

func (g *guard) DeleteNodeAddr(a netip.Addr) error {
	g.t.Helper()
	g.writes.NodeAddrs++
	return g.did("DeleteNodeAddr", g.Tables.DeleteNodeAddr(a))
}

func (g *guard) SetServiceCIDR(p netip.Prefix) error {
	g.t.Helper()
	g.writes.ServiceCidrs++
	return g.did("SetServiceCIDR", g.Tables.SetServiceCIDR(p))
}

func (g *guard) DeleteServiceCIDR(p netip.Prefix) error {
	g.t.Helper()
	g.writes.ServiceCidrs++
	return g.did("DeleteServiceCIDR", g.Tables.DeleteServiceCIDR(p))
}

// keepServing sets which entries must have endpoints throughout the next reconcile: those of a
// service that has some now and has some in after. It also sets which clients they must admit or
// refuse.
func (g *guard) keepServing(after *maps.Dump) {
	g.serving = map[maps.FrontendKey]sides{}
	g.admits = map[maps.FrontendKey]map[netip.Addr]bool{}
	now, _ := g.Dump()
	for k, v := range now.Frontends {
		next, stays := after.Frontends[k]
		if !stays || v.Id == 0 {
			continue
		}
		a, b := now.Names[v.Id], after.Names[next.Id]
		if a.Namespace == b.Namespace && a.Name == b.Name {
			g.serving[k] = sides{v.Inside.Count > 0 && next.Inside.Count > 0, v.Outside.Count > 0 && next.Outside.Count > 0}
			g.admits[k] = map[netip.Addr]bool{}
			for _, client := range probes {
				before := letsIn(now, v, client)
				if FamilyOf(client) == FamilyOf(k.AddrPort().Addr()) && before == letsIn(after, next, client) {
					g.admits[k][client] = before
				}
			}
		}
	}
}
