// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"math/bits"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The table has every map of maps.h, once, and no other.
func TestTableIsWhole(t *testing.T) {
	spec, err := loadAbi()
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{}
	for _, row := range table {
		if rows[row.name]++; spec.Maps[row.name] == nil || rows[row.name] > 1 {
			t.Errorf("the table has %d rows for map %q; maps.h has it: %t", rows[row.name], row.name, spec.Maps[row.name] != nil)
		}
	}
	for name := range spec.Maps {
		if rows[name] == 0 && !strings.HasPrefix(name, ".") { // the compiler's own, for constants
			t.Errorf("map %s of maps.h has no row in the table (table.go)", name)
		}
	}
}

// Keys and values in Go have the size that the map's declaration in C has. Elements of an array are
// 8-byte aligned in memory: types that are mapped must have that stride.
func TestLayout(t *testing.T) {
	specs, err := Spec(DefaultSizes())
	if err != nil {
		t.Fatal(err)
	}
	const mmapable = 1 << 10 // BPF_F_MMAPABLE
	size := func(v any) uint32 { return uint32(reflect.TypeOf(v).Size()) }
	for _, row := range table {
		m := specs[row.name]
		if m.KeySize != size(row.key) {
			t.Errorf("map %s: the key has %d bytes, in Go %d", row.name, m.KeySize, size(row.key))
		}
		if row.value != nil && m.ValueSize != size(row.value) {
			t.Errorf("map %s: the value has %d bytes, in Go %d", row.name, m.ValueSize, size(row.value))
		}
		if (m.Flags&mmapable != 0) != (row.element != nil) {
			t.Errorf("map %s: that it can be mapped into memory is %t, that Kernel does so %t",
				row.name, m.Flags&mmapable != 0, row.element != nil)
		}
		if row.element == nil {
			continue
		}
		if rounded := (m.ValueSize + 7) &^ 7; rounded != size(row.element) {
			t.Errorf("map %s: elements are %d bytes apart, in Go %d", row.name, rounded, size(row.element))
		}
	}
}

// Each size of Sizes has one flag, and reaches every map of that flag: alone, or added to what
// others ask for. No other map changes.
func TestSpecSizes(t *testing.T) {
	declared := DefaultSizes()
	before, err := Spec(declared)
	if err != nil {
		t.Fatal(err)
	}
	declaration, err := loadAbi()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range table {
		if got, want := before[row.name].MaxEntries, declaration.Maps[row.name].MaxEntries; got != want {
			t.Errorf("with the default sizes, map %s has %d entries, maps.h declares %d", row.name, got, want)
		}
	}
	if fields := reflect.TypeOf(declared).NumField(); fields != len(sizeFlags()) {
		t.Errorf("Sizes has %d fields, there are %d flags", fields, len(sizeFlags()))
	}
	seen := map[*uint32]string{}
	for _, f := range sizeFlags() {
		sizes := declared
		if other := seen[f.of(&declared)]; other != "" {
			t.Errorf("%s and %s set one field", f.flag, other)
		}
		seen[f.of(&declared)] = f.flag
		*f.of(&sizes) += 17
		after, err := Spec(sizes)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range table {
			want := before[row.name].MaxEntries
			if slices.Contains(row.sizes, f) {
				want += 17
			}
			if got := after[row.name].MaxEntries; got != want {
				t.Errorf("with 17 more by %s, map %s has %d entries, want %d", f.flag, row.name, got, want)
			}
		}
	}
	if abi, err := ABI(); err != nil || abi == 0 {
		t.Errorf("ABI %d, %v: 0 means that no daemon has written it", abi, err)
	}
}

// Flags are distinct single bits: they share a byte or a word.
func TestFlagBits(t *testing.T) {
	for _, group := range [][]uint32{
		{uint32(ClusterSet), uint32(LocalSet), uint32(OnNode), uint32(Terminating), uint32(Unready), uint32(Renamed)},
		{uint32(InsideLocal), uint32(OutsideLocal), uint32(Elsewhere), uint32(SourceRanges)},
		{uint32(FlowSNAT), uint32(FlowConfirmed), uint32(FlowLocal), uint32(FlowRemapped), uint32(FlowDirect)},
		{uint32(SaidFIN), uint32(SaidFINLater), uint32(SaidRST), uint32(SaidAnything), uint32(SaidSYN)},
	} {
		var all uint32
		for _, f := range group {
			if bits.OnesCount32(f) != 1 || all&f != 0 {
				t.Errorf("flag %#x of %#x", f, group)
			}
			all |= f
		}
	}
}
