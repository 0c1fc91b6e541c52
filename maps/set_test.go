// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"shunt/maps"
	"shunt/maps/mapstest"
)

// fill writes one service to empty maps, and the ABI number of its daemon.
func fill(t *testing.T, k *maps.Kernel, abi uint32) {
	t.Helper()
	err := errors.Join(
		k.SetName(1, maps.Name{Namespace: "ns", Name: "web", Protocol: 6, Family: 4}),
		k.SetBackend(5, record("10.0.0.1:8080", 6, maps.ClusterSet, 1)),
		k.WriteSlots(8, []uint32{5}),
		k.SetFrontend(frontend("10.96.0.1:80", 6), maps.Frontend{Id: 1, Kind: uint8(maps.ClusterIP), Inside: maps.SlotRange{Base: 8, Count: 1}}),
		k.SetNodeAddr(addr("127.0.0.1"), maps.HostNetns),
		k.SetSourceRange(source(1, "203.0.113.0/24")),
		k.SetServiceCIDR(prefix("10.96.0.0/12")))
	if err != nil {
		t.Fatal(err)
	}
	k.UpdateMeta(func(m *maps.DaemonMeta) { m.Abi, m.Pid = abi, 42 })
}

// open is maps.Open for tests that use the set.
func open(t *testing.T, root string, sizes maps.Sizes) (*maps.Set, maps.OpenResult) {
	t.Helper()
	set, result, err := maps.Open(root, sizes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = set.Close() })
	return set, result
}

// pins returns the names in a directory of pins below root.
func pins(t *testing.T, root, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".debug") { // the kernel's own
			names = append(names, e.Name())
		}
	}
	return names
}

// id returns the kernel's id of a map.
func id(t *testing.T, m *ebpf.Map) ebpf.MapID {
	t.Helper()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, ok := info.ID()
	if !ok {
		t.Fatal("the kernel does not number maps")
	}
	return id
}

func embeddedABI(t *testing.T) uint32 {
	t.Helper()
	abi, err := maps.ABI()
	if err != nil {
		t.Fatal(err)
	}
	return abi
}

func TestOpenFresh(t *testing.T) {
	root := mapstest.BPFFS(t)
	if _, err := maps.Load(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load where nothing is: %v", err)
	}
	set, result := open(t, root, small)
	if result != (maps.OpenResult{}) {
		t.Errorf("%+v", result)
	}
	names := pins(t, root, "maps")
	if len(names) != len(set.All()) {
		t.Errorf("pinned are %v, open are %v", names, set.All())
	}
	for _, n := range names {
		if set.Map(n) == nil {
			t.Errorf("%s is pinned and not open", n)
		}
	}
	if set.Map("no such") != nil {
		t.Error("a map that there is not")
	}
	if _, err := set.Commit(); err != nil {
		t.Errorf("Commit with nothing staged: %v", err)
	}
	if err := maps.Remove(root); err != nil {
		t.Fatal(err)
	}
	if names := pins(t, root, "."); len(names) != 0 {
		t.Errorf("after Remove there are %v", names)
	}
}

// Pinned maps are adopted with all of their entries, also if the previous daemon died before it
// wrote its ABI number.
func TestOpenAdopts(t *testing.T) {
	for _, abi := range []uint32{0, embeddedABI(t)} {
		t.Run(fmt.Sprintf("ABI %d", abi), func(t *testing.T) {
			root := mapstest.BPFFS(t)
			first, _ := mapstest.Open(t, root, small)
			fill(t, first, abi)
			again, result := mapstest.Open(t, root, small)
			if !result.Adopted || result.Replaces != "" {
				t.Errorf("%+v", result)
			}
			sameDump(t, dump(t, first), dump(t, again))
			if again.Meta() != first.Meta() || again.Meta().Pid != 42 {
				t.Errorf("meta %+v and %+v", first.Meta(), again.Meta())
			}
		})
	}
}

// Maps that don't fit stay in use until Commit; then the new ones replace them. The contents of
// socket storage and counters are kept, since they could not be made again.
func TestOpenStages(t *testing.T) {
	abi := embeddedABI(t)
	larger := maps.Sizes{Services: 32, Slots: 64, Backends: 32, Affinity: 32, Sources: 16, Flows: 16}
	for _, c := range []struct {
		what     string
		abi      uint32
		sizes    maps.Sizes
		replaces []string
		kept     bool // the entries are kept too
	}{
		{"another ABI", abi + 1, small, []string{fmt.Sprintf("ABI %d", abi+1), fmt.Sprintf("binary has %d", abi)}, false},
		{"more services", abi, maps.Sizes{Services: 32, Slots: 32, Backends: 16, Affinity: 16, Sources: 16, Flows: 16}, []string{"16 entries", maps.FlagServices, "32"}, true},
		{"fewer backends", abi, maps.Sizes{Services: 16, Slots: 32, Backends: 8, Affinity: 16, Sources: 16, Flows: 16}, []string{"16 entries", maps.FlagBackends, "8"}, true},
		{"all larger", abi, larger, []string{"room for", "asks for"}, true},
	} {
		t.Run(c.what, func(t *testing.T) { testStage(t, c.abi, c.sizes, c.replaces, c.kept) })
	}
}

func testStage(t *testing.T, abi uint32, sizes maps.Sizes, replaces []string, kept bool) {
	root := mapstest.BPFFS(t)
	set, _ := open(t, root, small)
	k, err := maps.NewKernel(set)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, k, abi)
	filled := dump(t, k)
	sticky := maps.AffinityKey{ServiceId: 1}
	err = errors.Join(set.Map("backend_stats").Put(uint32(5), uint64(7)),
		set.Map("affinity").Put(sticky, maps.AffinityValue{BackendId: 5, LastUsed: 9}), k.Close())
	if err != nil {
		t.Fatal(err)
	}
	staged, result := open(t, root, sizes)
	for _, w := range replaces {
		if result.Adopted || !strings.Contains(result.Replaces, w) {
			t.Errorf("%+v does not say %q", result, w)
		}
	}
	loaded, err := maps.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	if id(t, loaded.Map("services")) != id(t, set.Map("services")) {
		t.Error("before Commit the pinned maps are not the old ones")
	}
	_ = loaded.Close()
	if _, err := staged.Commit(); err != nil {
		t.Fatal(err)
	}
	after, result := mapstest.Open(t, root, sizes)
	if !result.Adopted || after.Sizes() != sizes {
		t.Errorf("after Commit: %+v, sizes %+v", result, after.Sizes())
	}
	if names := pins(t, root, "."); len(names) != 1 {
		t.Errorf("after Commit there are %v", names)
	}
	if kept {
		if got, want := dump(t, after).Text(), filled.Text(); got != want {
			t.Errorf("entries are\n%s\nwere\n%s", got, want)
		}
		var v maps.AffinityValue
		if err := staged.Map("affinity").Lookup(sticky, &v); err != nil || v.BackendId != 5 || v.LastUsed != 9 {
			t.Errorf("affinity %+v, %v", v, err)
		}
		if n := after.Connections(5); n != 7 {
			t.Errorf("%d connections, were 7", n)
		}
	} else if got := dump(t, after).Text(); got != "" {
		t.Errorf("maps of another ABI were copied:\n%s", got)
	}
	for name, same := range map[string]bool{"sock_peer": true, "sock_flows": true, "counters": true, "services": false, "slots": false, "backends": false, "meta": false} {
		if (id(t, staged.Map(name)) == id(t, set.Map(name))) != same {
			t.Errorf("map %s: kept is %t, want %t", name, !same, same)
		}
	}
}

// A set with a missing map is not adopted; Open makes another beside it.
func TestOpenHalfMade(t *testing.T) {
	root := mapstest.BPFFS(t)
	set, _ := open(t, root, small)
	for _, name := range []string{"counters", "services", "meta"} {
		if err := os.Remove(filepath.Join(root, "maps", name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := maps.Load(root); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of a part: %v, which must not read as: there is nothing", err)
	}
	staged, result := open(t, root, small)
	if result.Adopted || !strings.Contains(result.Replaces, "open pinned map") {
		t.Errorf("%+v", result)
	}
	if _, err := staged.Commit(); err != nil {
		t.Fatal(err)
	}
	if names := pins(t, root, "maps"); len(names) != len(set.All()) {
		t.Errorf("pinned are %v", names)
	}
	if _, result := open(t, root, small); !result.Adopted {
		t.Errorf("%+v", result)
	}
}

// Maps that were staged and never committed are made anew.
func TestOpenAfterStagedDied(t *testing.T) {
	root := mapstest.BPFFS(t)
	set, _ := open(t, root, small)
	staged, _ := open(t, root, maps.Sizes{Services: 32, Slots: 32, Backends: 16, Affinity: 16, Sources: 16, Flows: 16})
	_ = staged.Close()
	again, result := open(t, root, small)
	if !result.Adopted || id(t, again.Map("services")) != id(t, set.Map("services")) {
		t.Errorf("%+v", result)
	}
	if names := pins(t, root, "maps-new"); names != nil {
		t.Errorf("left of it: %v", names)
	}
}

// Counters are returned by the reasons' names in the C source, summed over CPUs.
func TestReasonsCounted(t *testing.T) {
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, small)
	set, _ := open(t, root, small)
	perCPU := make([]uint64, ebpf.MustPossibleCPU())
	for i := range perCPU {
		perCPU[i] = uint64(i + 1)
	}
	want := uint64(len(perCPU) * (len(perCPU) + 1) / 2)
	if err := set.Map("counters").Put(uint32(1), perCPU); err != nil {
		t.Fatal(err)
	}
	counts, err := k.Reasons()
	if err != nil {
		t.Fatal(err)
	}
	if counts["protocol"] != want {
		t.Errorf("reason protocol was counted %d times, want %d: %v", counts["protocol"], want, counts)
	}
	words := reasonWords(t)
	if len(counts) != len(words) {
		t.Errorf("%d counts for %d reasons", len(counts), len(words))
	}
	for _, w := range words {
		if _, there := counts[w]; !there {
			t.Errorf("no count for %q", w)
		}
	}
}

// Where maps can't be pinned, nothing stays open.
func TestOpenErrors(t *testing.T) {
	root := t.TempDir() // not a bpf file system
	before := openMaps()
	if set, _, err := maps.Open(root, small); err == nil {
		t.Error("pinned on a file system that can't")
		_ = set.Close()
	} else if os.Geteuid() == 0 && !strings.Contains(err.Error(), "make and pin map") {
		t.Error(err)
	}
	if n := openMaps(); n != before {
		t.Errorf("%d maps were open, now %d", before, n)
	}
	if names := pins(t, root, "maps"); names != nil {
		t.Errorf("left: %v", names)
	}
}
