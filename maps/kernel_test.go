// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// Nothing stays open or mapped after Close, also if that is called twice.
func TestCloseLeavesNothing(t *testing.T) {
	root := mapstest.BPFFS(t)
	fds, mapped := openMaps(), mappings(t)
	for range 3 {
		set, _, err := maps.Open(root, small)
		if err != nil {
			t.Fatal(err)
		}
		k, err := maps.NewKernel(set)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := k.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, used := k.Backend(1); used {
			t.Error("a record of maps that are closed")
		}
		if err := set.Close(); err != nil {
			t.Error(err)
		}
		loaded, err := maps.Load(root)
		if err != nil {
			t.Fatal(err)
		}
		_ = loaded.Close()
	}
	// Open makes a set beside one that does not fit, and closes the older one.
	staged, _, err := maps.Open(root, maps.Sizes{Services: 64, Slots: 32, Backends: 16, Affinity: 16, Sources: 16, Flows: 16})
	if err != nil {
		t.Fatal(err)
	}
	_ = staged.Close()
	if n := openMaps(); n != fds {
		t.Errorf("%d maps were open, now %d", fds, n)
	}
	if n := mappings(t); n != mapped {
		t.Errorf("%d maps were in memory, now %d", mapped, n)
	}
}

// The kernel's arrays and the memory they are mapped to are the same bytes.
func TestMappedMemory(t *testing.T) {
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, small)
	set, _ := open(t, root, small)
	fill(t, k, 1)
	var n uint32
	if err := set.Map("slots").Lookup(uint32(8), &n); err != nil || n != 5 {
		t.Errorf("slot 8 holds %d, %v", n, err)
	}
	var be maps.Backend
	if err := set.Map("backends").Lookup(uint32(5), &be); err != nil || be != record("10.0.0.1:8080", 6, maps.ClusterSet, 1) {
		t.Errorf("record 5 is %+v, %v", be, err)
	}
	if got, used := k.Backend(5); !used || got != be {
		t.Errorf("record 5 is %+v, %t", got, used)
	}
	if err := set.Map("backend_stats").Put(uint32(5), uint64(7)); err != nil || k.Connections(5) != 7 {
		t.Errorf("%d connections, %v", k.Connections(5), err)
	}
	if err := k.SetBackend(5, record("10.0.0.1:8080", 6, maps.Terminating, 1)); err != nil || k.Connections(5) != 7 {
		t.Errorf("with other flags: %d connections, %v", k.Connections(5), err)
	}
	if err := errors.Join(k.FreeBackend(5), k.SetBackend(5, record("10.0.0.2:8080", 6, 0, 1))); err != nil || k.Connections(5) != 0 {
		t.Errorf("for another endpoint: %d connections, %v", k.Connections(5), err)
	}
	if n, err := k.AffinityUsed(); err != nil || n != 0 {
		t.Errorf("%d affinities, %v", n, err)
	}
	if err := set.Map("affinity").Put(maps.AffinityKey{ServiceId: 1}, maps.AffinityValue{BackendId: 5}); err != nil {
		t.Fatal(err)
	}
	if n, err := k.AffinityUsed(); err != nil || n != 1 {
		t.Errorf("%d affinities, %v", n, err)
	}
	for _, beyond := range []uint32{0, 16, 1 << 31} {
		if _, used := k.Backend(beyond); used || k.Connections(beyond) != 0 {
			t.Errorf("record %d is used", beyond)
		}
	}
}

// A sweep over the node's sockets asks whether a backend id still names the socket's peer, and
// whether an address is a frontend.
func TestIsBackendIsFrontend(t *testing.T) {
	k := mapstest.New(t, small)
	fill(t, k, 1)
	err := errors.Join(
		k.SetNodeAddr(addr("192.168.0.1"), 0), k.SetNodeAddr(addr("fd00::1"), 0),
		k.SetFrontend(frontend("0.0.0.0:30080", 6), maps.Frontend{Id: 1, Kind: uint8(maps.NodePort)}),
		k.SetFrontend(frontend("[::]:30081", 17), maps.Frontend{Id: 1, Kind: uint8(maps.NodePort)}))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		id, service uint32
		addr        string
		want        bool
	}{
		{5, 1, "10.0.0.1:8080", true},
		{5, 2, "10.0.0.1:8080", false},
		{5, 1, "10.0.0.1:8081", false},
		{5, 1, "10.0.0.2:8080", false},
		{6, 1, "10.0.0.1:8080", false},
		{99, 1, "10.0.0.1:8080", false},
	} {
		if got := k.IsBackend(c.id, c.service, netip.MustParseAddrPort(c.addr)); got != c.want {
			t.Errorf("record %d of service %d is %s: %t", c.id, c.service, c.addr, got)
		}
	}
	for _, c := range []struct {
		addr     string
		protocol uint8
		want     bool
	}{
		{"10.96.0.1:80", 6, true},
		{"10.96.0.1:80", 17, false},
		{"10.96.0.1:81", 6, false},
		{"192.168.0.1:30080", 6, true},
		{"192.168.0.1:30081", 17, false},
		{"[fd00::1]:30081", 17, true},
		{"[fd00::1]:30080", 6, false},
		{"127.0.0.1:30080", 6, false}, // every network namespace has its own 127.0.0.1
		{"192.168.0.2:30080", 6, false},
	} {
		if got := k.IsFrontend(netip.MustParseAddrPort(c.addr), c.protocol); got != c.want {
			t.Errorf("%s/%d is a frontend: %t", c.addr, c.protocol, got)
		}
	}
}

// Another proxy may translate connections to a new frontend: no device resets unknown
// connections before that was checked.
func TestNewFrontendEndsResets(t *testing.T) {
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, small)
	add := func(addr string, protocol uint8) {
		t.Helper()
		if err := k.SetFrontend(frontend(addr, protocol), maps.Frontend{Id: 1, Kind: uint8(maps.ClusterIP)}); err != nil {
			t.Fatal(err)
		}
	}
	resets := func() bool {
		t.Helper()
		all, err := k.Devices()
		if err != nil || len(all) != 2 {
			t.Fatal(all, err)
		}
		if all[7].Addr4 != maps.NewDevice(netip.MustParseAddr("192.0.2.1"), netip.Addr{}).Addr4 {
			t.Errorf("the device lost its address: %+v", all[7])
		}
		return all[7].Flags&maps.DeviceResets != 0
	}
	set := func() {
		t.Helper()
		d := maps.NewDevice(netip.MustParseAddr("192.0.2.1"), netip.Addr{})
		d.Flags = maps.DeviceResets
		if err := errors.Join(k.SetDevice(7, d), k.SetDevice(8, maps.Device{})); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what, addr string
		protocol   uint8
		adds       bool
	}{
		{"a new one", "10.96.0.1:80", unix.IPPROTO_TCP, true},
		{"another one", "10.96.0.1:81", unix.IPPROTO_TCP, true},
		{"the same", "10.96.0.1:81", unix.IPPROTO_TCP, false},
		{"one of UDP", "10.96.0.1:81", unix.IPPROTO_UDP, false},
		{"a node port", "0.0.0.0:30000", unix.IPPROTO_TCP, true},
	} {
		set()
		before := k.NewFrontends()
		add(c.addr, c.protocol)
		if added := k.NewFrontends() != before; added != c.adds || resets() == c.adds {
			t.Errorf("%s: counted %t, resets %t", c.what, added, resets())
		}
	}
}
