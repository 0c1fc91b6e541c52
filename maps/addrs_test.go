// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// marks returns the flags of map addrs by address, as programs read them.
func marks(t *testing.T, set *maps.Set) map[netip.Addr]uint32 {
	t.Helper()
	var key [16]byte
	var flags uint32
	all := map[netip.Addr]uint32{}
	it := set.Map("addrs").Iterate()
	for it.Next(&key, &flags) {
		all[netip.AddrFrom16(key).Unmap()] = flags
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// The flags of map addrs, as in bpf/include/abi.h.
const (
	isFrontend  = 1
	isClusterIP = 2
	hasNodePort = 4
	hostNetns   = 8
)

// An address is marked for each reason exactly as long as that lasts.
func TestAddressMarks(t *testing.T) {
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, small)
	set, _ := open(t, root, small)
	whole := maps.NewFrontendKey(addr("10.0.0.1"), 0, 0)
	svc := maps.Frontend{Id: 1, Kind: uint8(maps.ClusterIP)}
	for _, c := range []struct {
		what string
		do   func() error
		want uint32 // flags of 10.0.0.1; 0: no entry
	}{
		{"another address", func() error { return k.SetFrontend(frontend("10.0.0.2:80", 6), svc) }, 0},
		{"a node port", func() error { return k.SetFrontend(frontend("0.0.0.0:30080", 6), svc) }, 0},
		{"a frontend", func() error { return k.SetFrontend(frontend("10.0.0.1:80", 6), svc) }, isFrontend},
		{"the same changed", func() error { return k.SetFrontend(frontend("10.0.0.1:80", 6), maps.Frontend{Id: 2}) }, isFrontend},
		{"a second frontend", func() error { return k.SetFrontend(frontend("10.0.0.1:81", 6), svc) }, isFrontend},
		{"the first goes", func() error { return k.DeleteFrontend(frontend("10.0.0.1:80", 6)) }, isFrontend},
		{"the first goes again", func() error { return k.DeleteFrontend(frontend("10.0.0.1:80", 6)) }, isFrontend},
		{"it is a cluster IP", func() error { return k.SetFrontend(whole, maps.Frontend{Kind: uint8(maps.UndefinedPort)}) }, isFrontend | isClusterIP},
		{"and the node's", func() error { return k.SetNodeAddr(addr("10.0.0.1"), maps.HostNetns) }, isFrontend | isClusterIP | hasNodePort | hostNetns},
		{"of every network namespace", func() error { return k.SetNodeAddr(addr("10.0.0.1"), 0) }, isFrontend | isClusterIP | hasNodePort},
		{"the last frontend goes", func() error { return k.DeleteFrontend(frontend("10.0.0.1:81", 6)) }, isClusterIP | hasNodePort},
		{"the cluster IP goes", func() error { return k.DeleteFrontend(whole) }, hasNodePort},
		{"the node's goes", func() error { return k.DeleteNodeAddr(addr("10.0.0.1")) }, 0},
		{"again", func() error { return k.DeleteNodeAddr(addr("10.0.0.1")) }, 0},
		{"it is the node's", func() error { return k.SetNodeAddr(addr("10.0.0.1"), 0) }, hasNodePort},
		{"and a frontend", func() error { return k.SetFrontend(frontend("10.0.0.1:80", 6), svc) }, hasNodePort | isFrontend},
		{"not the node's", func() error { return k.DeleteNodeAddr(addr("10.0.0.1")) }, isFrontend},
	} {
		if err := c.do(); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		all := marks(t, set)
		if got, there := all[addr("10.0.0.1")]; got != c.want || there != (c.want != 0) {
			t.Errorf("%s: marked %#x, there %t, want %#x", c.what, got, there, c.want)
		}
		if all[addr("10.0.0.2")] != isFrontend {
			t.Errorf("%s: the other address is marked %#x", c.what, all[addr("10.0.0.2")])
		}
		if _, there := all[addr("0.0.0.0")]; there {
			t.Errorf("%s: a node port marks the unspecified address", c.what)
		}
	}
}

// The first write of a daemon, whichever it is, repairs what its predecessor left when it was
// killed between two writes.
func TestAddressMarksRepaired(t *testing.T) {
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, small)
	set, _ := open(t, root, small)
	svc := maps.Frontend{Id: 1, Kind: uint8(maps.ClusterIP)}
	err := errors.Join(k.SetFrontend(frontend("10.0.0.1:80", 6), svc), k.SetFrontend(frontend("10.0.0.2:80", 6), svc),
		k.SetFrontend(frontend("10.0.0.4:80", 6), svc), k.SetFrontend(frontend("10.0.0.4:81", 6), svc),
		set.Map("addrs").Delete(addr("10.0.0.1").As16()),                              // a frontend without its mark
		set.Map("services").Delete(frontend("10.0.0.2:80", 6)),                        // a mark without its frontend
		set.Map("addrs").Put(addr("10.0.0.3").As16(), uint32(isFrontend|hasNodePort))) // one flag of two is wrong
	if err != nil {
		t.Fatal(err)
	}
	again, _ := mapstest.Open(t, root, small)
	if err := again.DeleteFrontend(frontend("10.0.0.4:81", 6)); err != nil {
		t.Fatal(err)
	}
	want := map[netip.Addr]uint32{addr("10.0.0.1"): isFrontend, addr("10.0.0.3"): hasNodePort, addr("10.0.0.4"): isFrontend}
	got := marks(t, set)
	for a, flags := range want {
		if got[a] != flags {
			t.Errorf("%s is marked %#x, want %#x", a, got[a], flags)
		}
	}
	if len(got) != len(want) {
		t.Errorf("marked are %v, want %v", got, want)
	}
}

// An endpoint that is removed and added again and again does not remap the marks of other
// addresses without backends. It keeps its own: its last removal is the newest.
func TestFlappingAddressTakesOneMark(t *testing.T) {
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, small)
	set, _ := open(t, root, small)
	flap := func(a string, times int) {
		t.Helper()
		be := maps.NewBackend(netip.AddrPortFrom(addr(a), 80), 6, 0, 1)
		for range times {
			if err := errors.Join(k.SetBackend(1, be), k.FreeBackend(1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	flap("10.0.0.1", 1)
	flap("10.0.0.2", 1)
	flap("10.0.0.2", 2*maps.LeftAddrs)
	if got := marks(t, set); len(got) != 2 {
		t.Fatalf("two that left: marked are %d: %v", len(got), got)
	}
	flap("10.0.0.1", 1)
	for i := range maps.LeftAddrs - 1 {
		flap(fmt.Sprintf("10.1.%d.%d", i/256, i%256), 1)
	}
	got := marks(t, set)
	if _, there := got[addr("10.0.0.2")]; there || len(got) != maps.LeftAddrs {
		t.Errorf("marked are %d, the one that left first: %t", len(got), there)
	}
	if _, there := got[addr("10.0.0.1")]; !there {
		t.Error("the one that left again is not marked")
	}
}

// No Service, EndpointSlice or node address changes the entries of HookCheckAddrs: the hook check
// must not depend on a tenant's object.
func TestHookChecksStay(t *testing.T) {
	const isHookCheck = 32
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, small)
	set, _ := open(t, root, small)
	for _, a := range maps.HookCheckAddrs {
		// The state that a daemon may have left which served such a Service.
		key, flags := a.As16(), uint32(isFrontend)
		if err := set.Map("addrs").Put(key, flags); err != nil {
			t.Fatal(err)
		}
	}
	at := maps.HookCheckAddrs
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"nothing", func() error { return nil }},
		{"a frontend", func() error {
			return k.SetFrontend(maps.NewFrontendKey(at[0], 80, 6), maps.Frontend{Id: 1, Kind: uint8(maps.ExternalIP)})
		}},
		{"a backend", func() error {
			return k.SetBackend(1, maps.NewBackend(netip.AddrPortFrom(at[1], 80), 6, maps.ClusterSet, 1))
		}},
		{"the node's", func() error { return k.SetNodeAddr(at[0], 0) }},
		{"no longer the node's", func() error { return k.DeleteNodeAddr(at[0]) }},
		{"no backend", func() error { return k.FreeBackend(1) }},
		{"no frontend", func() error { return k.DeleteFrontend(maps.NewFrontendKey(at[0], 80, 6)) }},
	} {
		if err := errors.Join(k.SetHookChecks(), c.do()); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		all := marks(t, set)
		for _, a := range at {
			if all[a] != isClusterIP|isHookCheck {
				t.Errorf("%s: %s is marked %#x, want %#x", c.what, a, all[a], isClusterIP|isHookCheck)
			}
		}
	}
}
