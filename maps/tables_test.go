// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// eachTables runs a test on the fake and on the kernel's maps.
func eachTables(t *testing.T, sizes maps.Sizes, test func(t *testing.T, tb maps.Tables)) {
	t.Run("fake", func(t *testing.T) { test(t, maps.NewFake(sizes)) })
	t.Run("kernel", func(t *testing.T) { test(t, mapstest.New(t, sizes)) })
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func frontend(s string, protocol uint8) maps.FrontendKey {
	ap := netip.MustParseAddrPort(s)
	return maps.NewFrontendKey(ap.Addr(), ap.Port(), protocol)
}

func source(id uint32, prefix string) maps.SourceRangeKey {
	return maps.NewSourceRangeKey(id, netip.MustParsePrefix(prefix))
}

func record(s string, protocol, flags uint8, service uint32) maps.Backend {
	return maps.NewBackend(netip.MustParseAddrPort(s), protocol, flags, service)
}

// operations are written for maps of the size small, and run in this order. fails is a part of
// the error's text; empty: no error.
var operations = []struct {
	what  string
	do    func(maps.Tables) error
	fails string
}{
	{"name", func(t maps.Tables) error {
		return t.SetName(1, maps.Name{Namespace: "ns", Name: "web", Port: "http", Protocol: 6, Family: 4})
	}, ""},
	{"name again, as another", func(t maps.Tables) error {
		return t.SetName(1, maps.Name{Namespace: "ns", Name: "api", Port: strings.Repeat("p", 63), Protocol: 6, Family: 4})
	}, ""},
	{"name of IPv6", func(t maps.Tables) error {
		return t.SetName(2, maps.Name{Namespace: "ns", Name: "dns", Protocol: 17, Family: 6})
	}, ""},
	{"name that is too long", func(t maps.Tables) error {
		return t.SetName(3, maps.Name{Namespace: "ns", Name: strings.Repeat("n", 64), Protocol: 6, Family: 4})
	}, "name has 64 characters, map names holds 63"},
	{"delete a name", func(t maps.Tables) error { return t.DeleteName(2) }, ""},
	{"delete a name that is not there", func(t maps.Tables) error { return t.DeleteName(2) }, ""},

	{"backend", func(t maps.Tables) error { return t.SetBackend(1, record("10.0.0.1:8080", 6, maps.ClusterSet, 1)) }, ""},
	{"backend of IPv6", func(t maps.Tables) error { return t.SetBackend(2, record("[fd00::2]:8080", 6, maps.LocalSet, 1)) }, ""},
	{"backend's flags", func(t maps.Tables) error {
		return t.SetBackend(1, record("10.0.0.1:8080", 6, maps.LocalSet|maps.Terminating, 1))
	}, ""},
	{"backend's flags away", func(t maps.Tables) error { return t.SetBackend(1, record("10.0.0.1:8080", 6, 0, 1)) }, ""},
	{"last backend", func(t maps.Tables) error { return t.SetBackend(15, record("10.0.0.15:1", 17, 1, 1)) }, ""},
	{"backend 0", func(t maps.Tables) error { return t.SetBackend(0, record("10.0.0.9:1", 6, 1, 1)) }, "records 1 to 15"},
	{"backend beyond", func(t maps.Tables) error { return t.SetBackend(16, record("10.0.0.9:1", 6, 1, 1)) }, "records 1 to 15"},
	{"free backend 0", func(t maps.Tables) error { return t.FreeBackend(0) }, "records 1 to 15"},
	{"free backend beyond", func(t maps.Tables) error { return t.FreeBackend(1 << 31) }, "records 1 to 15"},
	{"free the last backend", func(t maps.Tables) error { return t.FreeBackend(15) }, ""},
	{"free it again", func(t maps.Tables) error { return t.FreeBackend(15) }, ""},
	{"fill a freed record", func(t maps.Tables) error { return t.SetBackend(15, record("10.0.0.16:2", 6, 3, 1)) }, ""},

	{"slots", func(t maps.Tables) error { return t.WriteSlots(4, []uint32{1, 2, 15}) }, ""},
	{"no slots", func(t maps.Tables) error { return t.WriteSlots(32, nil) }, ""},
	{"the last slots", func(t maps.Tables) error { return t.WriteSlots(30, []uint32{2, 1}) }, ""},
	{"slots beyond", func(t maps.Tables) error { return t.WriteSlots(31, []uint32{2, 1}) }, "write 2 slots from 31: map slots has 32"},
	{"slots far beyond", func(t maps.Tables) error { return t.WriteSlots(1<<32-1, []uint32{2}) }, "map slots has 32"},

	{"frontend", func(t maps.Tables) error {
		return t.SetFrontend(frontend("10.96.0.1:80", 6), maps.Frontend{Id: 1, Kind: uint8(maps.ClusterIP),
			AffinitySeconds: 60, Inside: maps.SlotRange{Base: 4, Count: 3}, Outside: maps.SlotRange{Base: 30, Count: 2},
			Flags: maps.OutsideLocal | maps.Elsewhere})
	}, ""},
	{"frontend again, changed", func(t maps.Tables) error {
		return t.SetFrontend(frontend("10.96.0.1:80", 6), maps.Frontend{Id: 1, Kind: uint8(maps.ExternalIP),
			Inside: maps.SlotRange{Base: 4, Count: 2}})
	}, ""},
	{"node port of IPv4", func(t maps.Tables) error {
		return t.SetFrontend(frontend("0.0.0.0:30080", 6), maps.Frontend{Id: 1, Kind: uint8(maps.NodePort)})
	}, ""},
	{"node port of IPv6", func(t maps.Tables) error {
		return t.SetFrontend(frontend("[::]:30080", 6), maps.Frontend{Id: 1, Kind: uint8(maps.NodePort)})
	}, ""},
	{"undefined port", func(t maps.Tables) error {
		return t.SetFrontend(maps.NewFrontendKey(addr("10.96.0.1"), 0, 0), maps.Frontend{Kind: uint8(maps.UndefinedPort)})
	}, ""},
	{"delete a frontend", func(t maps.Tables) error { return t.DeleteFrontend(frontend("[::]:30080", 6)) }, ""},
	{"delete one that is not there", func(t maps.Tables) error { return t.DeleteFrontend(frontend("[::]:30080", 17)) }, ""},

	{"node address", func(t maps.Tables) error { return t.SetNodeAddr(addr("192.168.0.1"), 0) }, ""},
	{"node address of IPv6", func(t maps.Tables) error { return t.SetNodeAddr(addr("fd00::1"), 0) }, ""},
	{"loopback", func(t maps.Tables) error { return t.SetNodeAddr(addr("127.0.0.1"), maps.HostNetns) }, ""},
	{"node address's flags", func(t maps.Tables) error { return t.SetNodeAddr(addr("fd00::1"), maps.HostNetns) }, ""},
	{"delete a node address", func(t maps.Tables) error { return t.DeleteNodeAddr(addr("192.168.0.1")) }, ""},
	{"delete one that is not there", func(t maps.Tables) error { return t.DeleteNodeAddr(addr("192.168.0.2")) }, ""},

	{"service CIDR", func(t maps.Tables) error { return t.SetServiceCIDR(prefix("10.96.0.0/12")) }, ""},
	{"service CIDR again", func(t maps.Tables) error { return t.SetServiceCIDR(prefix("10.96.0.0/12")) }, ""},
	{"service CIDR within another", func(t maps.Tables) error { return t.SetServiceCIDR(prefix("10.96.0.0/16")) }, ""},
	{"service CIDR of IPv6", func(t maps.Tables) error { return t.SetServiceCIDR(prefix("fd00:10:96::/112")) }, ""},
	{"all of IPv4", func(t maps.Tables) error { return t.SetServiceCIDR(prefix("0.0.0.0/0")) }, ""},
	{"delete a service CIDR", func(t maps.Tables) error { return t.DeleteServiceCIDR(prefix("10.96.0.0/12")) }, ""},
	{"delete one that is not there", func(t maps.Tables) error { return t.DeleteServiceCIDR(prefix("10.96.0.0/13")) }, ""},
	{"source range", func(t maps.Tables) error { return t.SetSourceRange(source(1, "203.0.113.0/24")) }, ""},
	{"source range again", func(t maps.Tables) error { return t.SetSourceRange(source(1, "203.0.113.0/24")) }, ""},
	{"a wider one", func(t maps.Tables) error { return t.SetSourceRange(source(1, "203.0.0.0/16")) }, ""},
	{"the same of another service", func(t maps.Tables) error { return t.SetSourceRange(source(2, "203.0.113.0/24")) }, ""},
	{"one of IPv6", func(t maps.Tables) error { return t.SetSourceRange(source(3, "2001:db8::/33")) }, ""},
	{"everybody", func(t maps.Tables) error { return t.SetSourceRange(source(4, "0.0.0.0/0")) }, ""},
	{"everybody of IPv6", func(t maps.Tables) error { return t.SetSourceRange(source(5, "::/0")) }, ""},
	{"of no service", func(t maps.Tables) error { return t.SetSourceRange(source(0, "10.0.0.0/8")) },
		"add source range 10.0.0.0/8 of service id 0: no range of a service"},
	{"of part of a service's id", func(t maps.Tables) error { return t.SetSourceRange(maps.SourceRangeKey{PrefixBits: 31, ServiceId: 1}) },
		"with 31 bits of service id 1"},
	{"delete the wider one", func(t maps.Tables) error { return t.DeleteSourceRange(source(1, "203.0.0.0/16")) }, ""},
	{"delete a range that is not there", func(t maps.Tables) error { return t.DeleteSourceRange(source(1, "203.0.0.0/17")) }, ""},
}

// The fake and the kernel's maps get the same contents, and return the same errors.
func TestOperations(t *testing.T) {
	fake, kernel := maps.NewFake(small), mapstest.New(t, small)
	if fake.Sizes() != small || kernel.Sizes() != small {
		t.Fatalf("sizes %+v and %+v, want %+v", fake.Sizes(), kernel.Sizes(), small)
	}
	for _, op := range operations {
		t.Run(op.what, func(t *testing.T) {
			before := dump(t, kernel)
			errFake, errKernel := op.do(fake), op.do(kernel)
			if text(errFake) != text(errKernel) {
				t.Errorf("the fake fails with %q, real maps with %q", text(errFake), text(errKernel))
			}
			if (op.fails == "") != (errKernel == nil) || !strings.Contains(text(errKernel), op.fails) {
				t.Errorf("error %q, want %q", text(errKernel), op.fails)
			}
			a, b := dump(t, fake), dump(t, kernel)
			sameDump(t, a, b)
			if errKernel != nil {
				sameDump(t, before, b)
			}
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func dump(t *testing.T, tb maps.Tables) *maps.Dump {
	t.Helper()
	d, err := tb.Dump()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func sameDump(t *testing.T, a, b *maps.Dump) {
	t.Helper()
	if at, bt := a.Text(), b.Text(); at != bt {
		t.Errorf("one dump is\n%s\nthe other\n%s", at, bt)
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("one dump is\n%+v\nthe other\n%+v", a, b)
	}
}

// The error of a full map has its name, its size and the flag that sets it. Its entries can
// still be changed and removed, and after that there is room again.
func TestFull(t *testing.T) {
	key := func(i uint32) maps.FrontendKey { return maps.NewFrontendKey(addr("10.0.0.1"), uint16(i)+1, 6) }
	node := func(i uint32) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }
	for _, c := range []struct {
		full   maps.FullError
		set    func(tb maps.Tables, i uint32) error
		remove func(tb maps.Tables, i uint32) error
	}{
		{maps.FullError{Map: "services", Flag: maps.FlagServices, Size: 16},
			func(tb maps.Tables, i uint32) error { return tb.SetFrontend(key(i), maps.Frontend{Id: 1, Kind: 1}) },
			func(tb maps.Tables, i uint32) error { return tb.DeleteFrontend(key(i)) }},
		{maps.FullError{Map: "names", Flag: maps.FlagServices, Size: 16},
			func(tb maps.Tables, i uint32) error {
				return tb.SetName(i+1, maps.Name{Namespace: "a", Name: "b", Family: 4})
			},
			func(tb maps.Tables, i uint32) error { return tb.DeleteName(i + 1) }},
		{maps.FullError{Map: "addrs", Flag: maps.FlagServices, Size: 16 + 4096},
			func(tb maps.Tables, i uint32) error { return tb.SetNodeAddr(node(i), 0) },
			func(tb maps.Tables, i uint32) error { return tb.DeleteNodeAddr(node(i)) }},
		{maps.FullError{Map: "sources", Flag: maps.FlagSources, Size: 16},
			func(tb maps.Tables, i uint32) error { return tb.SetServiceCIDR(netip.PrefixFrom(node(i), 32)) },
			func(tb maps.Tables, i uint32) error { return tb.DeleteServiceCIDR(netip.PrefixFrom(node(i), 32)) }},
		{maps.FullError{Map: "sources", Flag: maps.FlagSources, Size: 16},
			func(tb maps.Tables, i uint32) error {
				return tb.SetSourceRange(maps.NewSourceRangeKey(1, netip.PrefixFrom(node(i), 32)))
			},
			func(tb maps.Tables, i uint32) error {
				return tb.DeleteSourceRange(maps.NewSourceRangeKey(1, netip.PrefixFrom(node(i), 32)))
			}},
	} {
		t.Run(c.full.Map, func(t *testing.T) {
			var texts []string
			eachTables(t, small, func(t *testing.T, tb maps.Tables) {
				for i := range c.full.Size {
					if err := c.set(tb, i); err != nil {
						t.Fatal(err)
					}
				}
				before := dump(t, tb)
				err := c.set(tb, c.full.Size)
				var full *maps.FullError
				if !errors.As(err, &full) || *full != c.full {
					t.Fatalf("error %v, want one of %+v", err, c.full)
				}
				texts = append(texts, err.Error())
				sameDump(t, before, dump(t, tb))
				if err := c.set(tb, 0); err != nil {
					t.Errorf("set what is there: %v", err)
				}
				if err := c.remove(tb, 3); err != nil {
					t.Error(err)
				}
				if err := c.set(tb, c.full.Size); err != nil {
					t.Errorf("set when there is room again: %v", err)
				}
			})
			if len(texts) == 2 && texts[0] != texts[1] {
				t.Errorf("the fake says %q, real maps %q", texts[0], texts[1])
			}
			if c.full.Flag != "" && !strings.Contains(texts[0], c.full.Flag+"") {
				t.Errorf("%q does not name the flag", texts[0])
			}
		})
	}
}

// These writes only the fake refuses: on the kernel's maps they would race with the programs.
func TestFakeRefusesRaces(t *testing.T) {
	f := maps.NewFake(small)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.SetBackend(1, record("10.0.0.1:1", 6, 1, 7)))
	must(f.SetBackend(2, record("10.0.0.2:1", 6, 1, 8)))
	must(f.WriteSlots(0, []uint32{1, 1, 2, 99}))
	lead := func(id, base, count uint32) error {
		return f.SetFrontend(frontend("10.96.0.1:80", 6), maps.Frontend{Id: id, Kind: 1, Inside: maps.SlotRange{Base: base, Count: count}})
	}
	must(lead(7, 0, 2))
	for what, err := range map[string]error{
		"an entry to another service's backend": lead(7, 1, 2),
		"an entry of no service":                lead(0, 0, 1),
		"an entry to a record that is not":      lead(7, 3, 1),
		"an entry to slots beyond":              lead(7, 31, 2),
		"slots that an entry names":             f.WriteSlots(1, []uint32{2, 2}),
		"the address of a record in use":        f.SetBackend(1, record("10.0.0.3:1", 6, 1, 7)),
		"the service of a record in use":        f.SetBackend(1, record("10.0.0.1:1", 6, 1, 8)),
	} {
		if err == nil {
			t.Errorf("%s: not refused", what)
		}
	}
	must(f.WriteSlots(2, []uint32{1}))
	must(f.DeleteFrontend(frontend("10.96.0.1:80", 6)))
	must(f.WriteSlots(1, []uint32{2, 2}))
}
