// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"shunt/maps"
	"shunt/maps/mapstest"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// keysText returns a flow's keys as text.
func keysText(f maps.Flow) []string {
	var keys []string
	for _, k := range f.Keys() {
		keys = append(keys, k.String())
	}
	return keys
}

// A flow's keys are those that abi.h defines: the two ends are ordered by the bytes of their
// addresses, and then by their ports as numbers.
func TestFlowKeys(t *testing.T) {
	for _, c := range []struct {
		what  string
		ends  maps.Ends
		flags uint8
		want  []string
	}{
		{"a backend of this node",
			maps.Ends{Client: ap("192.0.2.1:1000"), Frontend: ap("10.96.0.1:80"), Backend: ap("10.244.0.1:8080"), Inner: ap("192.0.2.1:1000")}, 0,
			[]string{"in 192.0.2.1:1000 → 10.96.0.1:80/TCP", "out 10.244.0.1:8080 → 192.0.2.1:1000/TCP"}},
		{"of another node, with another port inside",
			maps.Ends{Client: ap("9.0.2.1:1000"), Frontend: ap("10.96.0.1:80"), Backend: ap("10.244.0.1:8080"), Inner: ap("9.0.2.1:1001"),
				SNAT: ap("192.168.0.1:61000")}, maps.FlowSNAT,
			[]string{"in 9.0.2.1:1000 → 10.96.0.1:80/TCP", "out 9.0.2.1:1001 → 10.244.0.1:8080/TCP", "in 10.244.0.1:8080 → 192.168.0.1:61000/TCP"}},
		{"IPv6, whose node is not chosen yet",
			maps.Ends{Client: ap("[2001:db8::1]:5"), Frontend: ap("[fd00::1]:80"), Backend: ap("[fd00::2]:8080"), Inner: ap("[2001:db8::1]:5")}, maps.FlowSNAT,
			[]string{"in [2001:db8::1]:5 → [fd00::1]:80/TCP", "out [2001:db8::1]:5 → [fd00::2]:8080/TCP"}},
		{"a backend that is its own client: 256 is more than 255, though not in the order of its bytes",
			maps.Ends{Client: ap("10.0.0.1:256"), Frontend: ap("10.96.0.1:80"), Backend: ap("10.0.0.1:255"), Inner: ap("10.0.0.1:256")}, 0,
			[]string{"in 10.0.0.1:256 → 10.96.0.1:80/TCP", "out 10.0.0.1:255 → 10.0.0.1:256/TCP"}},
		{"a socket of this node",
			maps.Ends{Client: ap("192.0.2.1:53"), Frontend: ap("192.168.0.1:30053"), Backend: ap("0.0.0.0:0"), Inner: ap("192.0.2.1:0")}, maps.FlowLocal,
			[]string{"in 192.0.2.1:53 → 192.168.0.1:30053/TCP"}},
	} {
		if c.ends.SNAT == (netip.AddrPort{}) {
			c.ends.SNAT = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		}
		f := maps.NewFlow(c.ends, 6, c.flags, 7)
		if got := keysText(f); !slices.Equal(got, c.want) {
			t.Errorf("%s: keys are %q, want %q", c.what, got, c.want)
		}
		if got := f.Ends(); got != c.ends {
			t.Errorf("%s: read back as %+v, were %+v", c.what, got, c.ends)
		}
		other := f
		other.Used, other.Flags, other.ClientSaid, other.BackendSaid, other.BackendId = 9, maps.FlowConfirmed, maps.SaidRST, maps.SaidFIN, 7
		if !f.IsSame(&other) {
			t.Errorf("%s: at another time it is another flow", c.what)
		}
		for _, change := range []func(*maps.Flow){
			func(f *maps.Flow) { f.Protocol = 17 }, func(f *maps.Flow) { f.InnerPort++ }, func(f *maps.Flow) { f.SnatPort++ }, func(f *maps.Flow) { f.ClientPort++ }, func(f *maps.Flow) { f.Client.B[15]++ },
			func(f *maps.Flow) { f.FrontendPort++ }, func(f *maps.Flow) { f.Frontend.B[0]++ },
			func(f *maps.Flow) { f.BackendPort++ }, func(f *maps.Flow) { f.Backend.B[0]++ },
		} {
			other := f
			if change(&other); f.IsSame(&other) {
				t.Errorf("%s: the same as %+v", c.what, other.Ends())
			}
		}
	}
}

// numberedFlow returns flow number i.
func numberedFlow(i int, used uint64) maps.Flow {
	client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 1000)
	return maps.NewFlow(maps.Ends{Client: client, Inner: client, Frontend: ap("10.96.0.1:80"), Backend: ap("10.244.0.1:8080"),
		SNAT: ap("[::]:0")}, 6, maps.FlowConfirmed, used)
}

// putFlows writes flows with all of their entries.
func putFlows(t *testing.T, set *maps.Set, flows ...maps.Flow) {
	t.Helper()
	for _, f := range flows {
		for _, k := range f.Keys() {
			if err := set.Map("flows").Put(k, f); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// readFlows returns all entries of map flows.
func readFlows(t *testing.T, set *maps.Set) map[maps.FlowKey]maps.Flow {
	t.Helper()
	all := map[maps.FlowKey]maps.Flow{}
	err := maps.EachEntry(set.Map("flows"), func(k *maps.FlowKey, f *maps.Flow) error {
		if _, twice := all[*k]; twice {
			return fmt.Errorf("%s twice", k)
		}
		all[*k] = *f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Every entry is visited once, also if the map has more than one system call reads.
func TestEachEntry(t *testing.T) {
	sizes := small
	sizes.Flows = 8192
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, sizes)
	set, _ := open(t, root, sizes)
	if got := readFlows(t, set); len(got) != 0 {
		t.Errorf("%d entries of an empty map", len(got))
	}
	const flows = 2000
	for i := range flows {
		putFlows(t, set, numberedFlow(i, uint64(i)))
	}
	all := readFlows(t, set)
	for i := range flows {
		f := numberedFlow(i, uint64(i))
		for _, k := range f.Keys() {
			if all[k] != f {
				t.Fatalf("entry %s is %+v", k, all[k])
			}
		}
	}
	if n, err := k.FlowsUsed(); err != nil || n != 2*flows || len(all) != 2*flows {
		t.Errorf("%d entries, counted %d, %v", len(all), n, err)
	}
	stop := fmt.Errorf("stop")
	if err := maps.EachEntry(set.Map("flows"), func(*maps.FlowKey, *maps.Flow) error { return stop }); err != stop { //nolint:errorlint // as it is
		t.Errorf("it ended with %v", err)
	}
}

// Confirmed flows are carried to a map of another size, with the packets that programs note
// until the switch. Entries that do not fit are counted, and do not stop the start.
func TestFlowsAreCarried(t *testing.T) {
	const flows = 30
	for _, c := range []struct {
		what string
		size uint32
		lost int
	}{{"larger", 128, 0}, {"just large enough", 2*flows + 2, 0}, {"smaller", 16, 2*flows - 16}} {
		t.Run(c.what, func(t *testing.T) {
			root := mapstest.BPFFS(t)
			sizes := small
			sizes.Flows = 100
			k, _ := mapstest.Open(t, root, sizes)
			fill(t, k, embeddedABI(t))
			old, _ := open(t, root, sizes)
			for i := range flows {
				putFlows(t, old, numberedFlow(i, 5))
			}
			sizes.Flows = c.size
			set, result := open(t, root, sizes)
			if result.Adopted || set.Map("flows").MaxEntries() != c.size {
				t.Fatalf("%+v, %d entries", result, set.Map("flows").MaxEntries())
			}
			if id(t, set.Map("flows_new")) != id(t, old.Map("flows_new")) {
				t.Error("flows_new, whose size is the same, is another map")
			}
			if got, want := len(readFlows(t, set)), min(2*flows, int(c.size)); got != want {
				t.Errorf("%d entries before the switch, want %d", got, want)
			}
			// Before the switch one flow is used and one begins. Entries that the new programs
			// used last stay.
			ours := numberedFlow(77, 10) // a flow that only the new programs know
			used, mine, late := numberedFlow(0, 9), numberedFlow(1, 10), numberedFlow(flows, 9)
			putFlows(t, old, used, late)
			over := numberedFlow(2, 5)
			for _, k := range over.Keys() { // its client begins again: the next flow is in flows_new
				if err := old.Map("flows").Delete(k); err != nil {
					t.Fatal(err)
				}
			}
			if c.lost == 0 {
				putFlows(t, set, mine, ours)
			}
			carried, err := set.Commit()
			if err != nil || carried.Err != nil || carried.Lost != c.lost {
				t.Errorf("%+v, %v; want %d lost", carried, err, c.lost)
			}
			all := readFlows(t, set)
			if c.lost != 0 {
				return
			}
			for _, k := range ours.Keys() {
				if all[k] != ours {
					t.Errorf("entry %s is %+v", k, all[k])
				}
			}
			for _, k := range over.Keys() {
				if _, there := all[k]; there {
					t.Errorf("entry %s is there, which is over", k)
				}
			}
			for i := range flows + 1 {
				if i == 2 {
					continue
				}
				want := map[int]maps.Flow{0: used, 1: mine, flows: late}[i]
				if want.Used == 0 {
					want = numberedFlow(i, 5)
				}
				for _, k := range want.Keys() {
					if all[k] != want {
						t.Errorf("entry %s is %+v, want %+v", k, all[k], want)
					}
				}
			}
		})
	}
}

// Maps of another ABI are not copied, since the meaning of their entries is unknown. Within one
// ABI, a set of the same size shares the map.
func TestFlowsOfOtherMaps(t *testing.T) {
	abi := embeddedABI(t)
	for _, c := range []struct {
		abi   uint32
		sizes maps.Sizes
		kept  bool
	}{
		{abi + 1, small, false},
		{abi + 1, maps.Sizes{Services: 16, Slots: 32, Backends: 16, Affinity: 16, Sources: 16, Flows: 64}, false},
		{abi, maps.Sizes{Services: 32, Slots: 32, Backends: 16, Affinity: 16, Sources: 16, Flows: 16}, true},
	} {
		root := mapstest.BPFFS(t)
		k, _ := mapstest.Open(t, root, small)
		fill(t, k, c.abi)
		old, _ := open(t, root, small)
		putFlows(t, old, numberedFlow(1, 5))
		set, _ := open(t, root, c.sizes)
		for _, name := range []string{"flows", "flows_new"} {
			if same := id(t, set.Map(name)) == id(t, old.Map(name)); same != c.kept {
				t.Errorf("ABI %d, %+v: map %s is kept: %t", c.abi, c.sizes, name, same)
			}
		}
		if carried, err := set.Commit(); err != nil || carried != (maps.CarriedFlows{}) {
			t.Errorf("%+v, %v", carried, err)
		}
		if n := len(readFlows(t, set)); n != 0 != c.kept {
			t.Errorf("ABI %d, %+v: %d entries", c.abi, c.sizes, n)
		}
	}
}
