// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"net/netip"
	"strings"
	"testing"

	"shunt/maps"
)

// Addresses and ports of both families survive a round trip. An IPv4 address and its
// IPv4-mapped form are one key.
func TestFrontendKeyRoundTrip(t *testing.T) {
	for _, s := range []string{
		"10.96.0.1:80", "0.0.0.0:30080", "255.255.255.254:65535", "1.2.3.4:1", "127.0.0.1:258",
		"[fd00::1]:80", "[::]:30080", "[::1]:1", "[2001:db8:1:2:3:4:5:6]:65535", "[64:ff9b::1.2.3.4]:53",
	} {
		want := netip.MustParseAddrPort(s)
		for _, protocol := range []uint8{6, 17} {
			key := maps.NewFrontendKey(want.Addr(), want.Port(), protocol)
			if got := key.AddrPort(); got != want || key.Protocol != protocol {
				t.Errorf("%s: read back as %s/%d", s, got, key.Protocol)
			}
			if be := maps.NewBackend(want, protocol, 5, 9); be.AddrPort() != want || be.Protocol != protocol || be.Flags != 5 || be.ServiceId != 9 {
				t.Errorf("%s: backend read back as %+v", s, be)
			}
			if want.Addr().Is4() {
				mapped := netip.AddrFrom16(want.Addr().As16())
				if maps.NewFrontendKey(mapped, want.Port(), protocol) != key {
					t.Errorf("%s: as IPv4-mapped it is another key", s)
				}
			}
		}
	}
}

// A source range survives a round trip, masked. Its prefix has the bits of the service id, and
// then those of an IPv6 prefix.
func TestSourceRangeKey(t *testing.T) {
	for prefix, bits := range map[string]uint32{
		"0.0.0.0/0": 128, "10.0.0.0/8": 136, "203.0.113.7/32": 160, "::/0": 32, "2001:db8::/33": 65, "2001:db8::1/128": 160,
	} {
		p := netip.MustParsePrefix(prefix)
		key := maps.NewSourceRangeKey(7, p)
		if key.Prefix() != p || key.PrefixBits != bits || key.ServiceId != 7 {
			t.Errorf("%s: %+v is read back as %s", p, key, key.Prefix())
		}
	}
	if a, b := maps.NewSourceRangeKey(7, netip.MustParsePrefix("10.1.2.3/8")), maps.NewSourceRangeKey(7, netip.MustParsePrefix("10.0.0.0/8")); a != b {
		t.Errorf("%+v is not masked", a)
	}
	odd := maps.NewSourceRangeKey(7, netip.MustParsePrefix("10.0.0.0/8"))
	for what, change := range map[string]func(*maps.SourceRangeKey){
		"fewer bits than the id has": func(k *maps.SourceRangeKey) { k.PrefixBits = 31 },
		"part of ::ffff:0:0/96":      func(k *maps.SourceRangeKey) { k.PrefixBits = 127 },
		"more bits than there are":   func(k *maps.SourceRangeKey) { k.PrefixBits = 161 },
		"not masked":                 func(k *maps.SourceRangeKey) { k.Addr.B[15] = 1 },
	} {
		k := odd
		if change(&k); k.Prefix().IsValid() {
			t.Errorf("%s: read as %s", what, k.Prefix())
		}
	}
}

// The bytes are those in a packet: network order, IPv4 as ::ffff:a.b.c.d.
func TestByteOrder(t *testing.T) {
	key := maps.NewFrontendKey(netip.MustParseAddr("10.1.2.3"), 0x1234, 6)
	if want := [16]byte{10: 0xff, 11: 0xff, 12: 10, 13: 1, 14: 2, 15: 3}; key.Addr.B != want {
		t.Errorf("address bytes % x, want % x", key.Addr.B, want)
	}
	if maps.HostPort(maps.HostPort(0x1234)) != 0x1234 {
		t.Error("HostPort is not its own inverse")
	}
	// The objects are built for little-endian machines only (bpfel).
	if key.Port != 0x3412 {
		t.Errorf("port %#x in the map, want %#x", key.Port, 0x3412)
	}
}

func TestKeyText(t *testing.T) {
	for want, key := range map[string]maps.FrontendKey{
		"10.96.0.1:80/TCP": maps.NewFrontendKey(netip.MustParseAddr("10.96.0.1"), 80, 6),
		"[fd00::1]:53/UDP": maps.NewFrontendKey(netip.MustParseAddr("fd00::1"), 53, 17),
		"*:30080/TCP":      maps.NewFrontendKey(netip.IPv4Unspecified(), 30080, 6),
		"[*]:30080/UDP":    maps.NewFrontendKey(netip.IPv6Unspecified(), 30080, 17),
		"10.96.0.1:0/ANY":  maps.NewFrontendKey(netip.MustParseAddr("10.96.0.1"), 0, 0),
		"10.96.0.1:9/132":  maps.NewFrontendKey(netip.MustParseAddr("10.96.0.1"), 9, 132),
	} {
		if got := key.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	kinds := map[maps.FrontendKind]string{
		maps.ClusterIP: "ClusterIP", maps.NodePort: "NodePort", maps.LoadBalancerIP: "LoadBalancerIP",
		maps.ExternalIP: "ExternalIP", maps.UndefinedPort: "UndefinedPort", 77: "FrontendKind(77)",
	}
	for kind, want := range kinds {
		if got := kind.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for want, n := range map[string]maps.Name{
		"ns/web:http/TCP": {Namespace: "ns", Name: "web", Port: "http", Protocol: 6, Family: 4},
		"ns/web/UDP":      {Namespace: "ns", Name: "web", Protocol: 17, Family: 6},
	} {
		if got := n.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestSizesValidate(t *testing.T) {
	if err := maps.DefaultSizes().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	good := maps.Sizes{Services: 16, Slots: 1 << 26, Backends: 16, Affinity: 16, Sources: 16, Flows: 16}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for flag, change := range map[string]func(*maps.Sizes){
		maps.FlagServices: func(s *maps.Sizes) { s.Services = 15 },
		maps.FlagSlots:    func(s *maps.Sizes) { s.Slots = 1<<26 + 1 },
		maps.FlagBackends: func(s *maps.Sizes) { s.Backends = 0 },
		maps.FlagAffinity: func(s *maps.Sizes) { s.Affinity = 1<<32 - 1 },
		maps.FlagSources:  func(s *maps.Sizes) { s.Sources = 15 },
		maps.FlagFlows:    func(s *maps.Sizes) { s.Flows = 1<<26 + 1 },
	} {
		bad := good
		change(&bad)
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%+v: error %v does not name %s", bad, err, flag)
		}
	}
}

func TestWrites(t *testing.T) {
	w := maps.Writes{Frontends: 1, Slots: 2, Backends: 3, Names: 4, NodeAddrs: 5, ServiceCidrs: 6, Sources: 7}
	w.Add(maps.Writes{Frontends: 10, Slots: 20, Backends: 30, Names: 40, NodeAddrs: 50, ServiceCidrs: 60, Sources: 70})
	if want := (maps.Writes{Frontends: 11, Slots: 22, Backends: 33, Names: 44, NodeAddrs: 55, ServiceCidrs: 66, Sources: 77}); w != want {
		t.Errorf("sum %+v, want %+v", w, want)
	}
	if w.Total() != 308 {
		t.Errorf("total %d, want 231", w.Total())
	}
}
