// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// TestMemory: texts are kept from one daemon to the next, and when maps are replaced.
func TestMemory(t *testing.T) {
	root := mapstest.BPFFS(t)
	if _, err := maps.LoadMemory(root); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("before there is one: %v", err)
	}
	m, err := maps.OpenMemory(root)
	must(t, err)
	var got map[string]int
	if err := m.Get(maps.MemoryServers, &got); err != nil || got != nil {
		t.Fatalf("nothing was put: %v, %v", got, err)
	}
	must(t, m.Put(maps.MemoryServers, map[string]int{"long": 1, "and": 2, "more": 3}))
	want := map[string]int{"a": 1}
	must(t, m.Put(maps.MemoryServers, want))
	if err := m.Put(maps.MemoryWatches, strings.Repeat("x", 5000)); err == nil {
		t.Error("a text without room was taken")
	}
	must(t, m.Close())
	m, err = maps.OpenMemory(root)
	must(t, err)
	if err := m.Get(maps.MemoryServers, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	must(t, m.Close())
	must(t, maps.Remove(root))
	if _, err := maps.LoadMemory(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestLeads: Leads returns the endpoints of a frontend.
func TestLeads(t *testing.T) {
	k, _ := mapstest.Open(t, mapstest.BPFFS(t), maps.DefaultSizes())
	service, a, b := netip.MustParseAddrPort("10.96.0.1:443"), netip.MustParseAddrPort("192.0.2.1:6443"), netip.MustParseAddrPort("[2001:db8::1]:6443")
	if got := k.Leads(service); got != nil {
		t.Errorf("no such frontend: %v", got)
	}
	must(t, k.SetBackend(1, maps.NewBackend(a, 6, 0, 7)))
	must(t, k.SetBackend(2, maps.NewBackend(b, 6, 0, 7)))
	must(t, k.SetBackend(3, maps.NewBackend(a, 6, 0, 8))) // of another service id
	must(t, k.WriteSlots(4, []uint32{1, 2, 3}))
	must(t, k.SetFrontend(maps.NewFrontendKey(service.Addr(), service.Port(), 6), maps.Frontend{Id: 7, Inside: maps.SlotRange{Base: 4, Count: 3}}))
	if got := k.Leads(service); !slices.Equal(got, []netip.AddrPort{a, b}) {
		t.Errorf("it leads to %v", got)
	}
	must(t, k.SetFrontend(maps.NewFrontendKey(service.Addr(), service.Port(), 6), maps.Frontend{Id: 7}))
	if got := k.Leads(service); got != nil {
		t.Errorf("without endpoints: %v", got)
	}
}

// TestLeadsByNodePort: Leads finds a node port on an address of the node.
func TestLeadsByNodePort(t *testing.T) {
	k, _ := mapstest.Open(t, mapstest.BPFFS(t), maps.DefaultSizes())
	ends := map[string]netip.AddrPort{"4": netip.MustParseAddrPort("192.0.2.9:6443"), "6": netip.MustParseAddrPort("[2001:db8::9]:6443")}
	must(t, k.SetBackend(1, maps.NewBackend(ends["4"], 6, 0, 7)))
	must(t, k.SetBackend(2, maps.NewBackend(ends["6"], 6, 0, 8)))
	must(t, k.WriteSlots(4, []uint32{1, 2}))
	must(t, k.SetFrontend(maps.NewFrontendKey(netip.IPv4Unspecified(), 30443, 6), maps.Frontend{Id: 7, Inside: maps.SlotRange{Base: 4, Count: 1}}))
	must(t, k.SetFrontend(maps.NewFrontendKey(netip.IPv6Unspecified(), 30443, 6), maps.Frontend{Id: 8, Inside: maps.SlotRange{Base: 5, Count: 1}}))
	for node, flags := range map[string]uint32{"192.0.2.1": 0, "127.0.0.1": maps.HostNetns, "2001:db8::1": 0} {
		must(t, k.SetNodeAddr(netip.MustParseAddr(node), flags))
	}
	for to, want := range map[string]string{"192.0.2.1:30443": "4", "127.0.0.1:30443": "4", "[2001:db8::1]:30443": "6", "[::ffff:192.0.2.1]:30443": "4",
		"192.0.2.1:30444": "", "192.0.2.2:30443": "", "[2001:db8::2]:30443": ""} {
		if got := k.Leads(netip.MustParseAddrPort(to)); want == "" && got != nil || want != "" && !slices.Equal(got, []netip.AddrPort{ends[want]}) {
			t.Errorf("%s leads to %v, want %v", to, got, ends[want])
		}
	}
}
