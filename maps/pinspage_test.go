// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"io/fs"
	stdmaps "maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// TestPinsPage compares the tables of docs/PINS.md with the type information of the embedded
// object: every map of maps.h, every structure of a key or a value, every enumeration, and the
// ABI number. It prints a missing row as it should be.
func TestPinsPage(t *testing.T) {
	content, err := os.ReadFile("../docs/PINS.md")
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat("../go.mod"); err != nil {
			t.Skip("the test does not run in the source tree, as in a VM")
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	page, want := readPage(string(content)), wantPage(t)
	for _, title := range slices.Sorted(stdmaps.Keys(want)) {
		if page[title] == nil {
			t.Errorf("a section with the heading %q is missing; its rows:\n%s", title, strings.Join(want[title], "\n"))
			continue
		}
		for _, row := range want[title] {
			if !slices.ContainsFunc(page[title], func(line string) bool { return line == row || strings.HasPrefix(line, row+" ") }) {
				t.Errorf("section %q has no row\n%s …", title, row)
			}
		}
		if got := len(page[title]) - 2; got != len(want[title]) { // a table's head is two lines
			t.Errorf("section %q has a table of %d rows, want %d", title, got, len(want[title]))
		}
	}
	for title := range page {
		named := strings.HasPrefix(title, "struct ") || strings.HasPrefix(title, "enum ")
		if _, there := want[title]; named && !there {
			t.Errorf("section %q is about nothing that is pinned", title)
		}
	}
	abi, err := ABI()
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("This page describes ABI %d.", abi); !strings.Contains(string(content), text) {
		t.Errorf("the page does not say %q", text)
	}
}

// readPage returns the lines of tables, by the heading above them.
func readPage(content string) map[string][]string {
	page, title := map[string][]string{}, ""
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"):
			title = strings.TrimLeft(line, "# ")
		case strings.HasPrefix(line, "|"):
			page[title] = append(page[title], line)
		}
	}
	return page
}

// wantPage returns the beginnings of all rows that the page must have, by heading.
func wantPage(t *testing.T) map[string][]string {
	t.Helper()
	spec, err := loadAbi()
	if err != nil {
		t.Fatal(err)
	}
	want, sizes := map[string][]string{}, DefaultSizes()
	for name, m := range spec.Maps {
		if strings.HasPrefix(name, ".") { // constants
			continue
		}
		row := mapRow(name, m, sizes.NewFullError(name).Flag, typeName(m.Key), typeName(m.Value))
		want["The set of maps"] = append(want["The set of maps"], row)
		addStructs(want, m.Key)
		addStructs(want, m.Value)
	}
	m := memorySpec()
	want["Pins beside the set"] = []string{
		mapRow(memoryPin, m, "", "__u32", fmt.Sprintf("__u8[%d]", m.ValueSize)),
		"| `flow-seed` | array | none | 1 | none | `__u32` | `__u64` |", // package bpf makes it
	}
	for typ, err := range spec.Types.All() {
		if err != nil {
			t.Fatal(err)
		}
		if enum, ok := typ.(*btf.Enum); ok {
			addEnum(want, enum)
		}
	}
	return want
}

func mapRow(name string, m *ebpf.MapSpec, flag, key, value string) string {
	kinds := map[ebpf.MapType]string{ebpf.Hash: "hash", ebpf.LRUHash: "LRU hash", ebpf.Array: "array",
		ebpf.PerCPUArray: "per-CPU array", ebpf.SkStorage: "socket storage", ebpf.LPMTrie: "LPM trie"}
	flags := map[uint32]string{0: "none", 1: "no prealloc", 1 << 10: "mmapable"}
	if flag = "`" + flag + "`"; flag == "``" {
		flag = "none"
	}
	return fmt.Sprintf("| `%s` | %s | %s | %d | %s | `%s` | `%s` |", name, kinds[m.Type], flags[m.Flags], m.MaxEntries, flag, key, value)
}

// addStructs adds a structure and those that it contains.
func addStructs(want map[string][]string, typ btf.Type) {
	switch typ := btf.UnderlyingType(typ).(type) {
	case *btf.Array:
		addStructs(want, typ.Type)
	case *btf.Struct:
		title := fmt.Sprintf("struct %s, %d bytes", typ.Name, typ.Size)
		if want[title] != nil || typ.Name == "bpf_spin_lock" { // the kernel's own
			return
		}
		for _, m := range typ.Members {
			size, _ := btf.Sizeof(m.Type)
			want[title] = append(want[title], fmt.Sprintf("| %d | %d | `%s` | `%s` |", m.Offset.Bytes(), size, m.Name, typeName(m.Type)))
			addStructs(want, m.Type)
		}
	}
}

// addEnum adds an enumeration. For reasons, the page has the names of the metric's label.
func addEnum(want map[string][]string, enum *btf.Enum) {
	title := "enum " + enum.Name
	for _, v := range enum.Values {
		name := v.Name
		if enum.Name == "reason" {
			name = strings.ToLower(strings.TrimPrefix(name, "REASON_"))
			if name == "max" {
				continue
			}
		}
		want[title] = append(want[title], fmt.Sprintf("| %d | `%s` |", v.Value, name))
	}
}

// typeName returns a type's name in C, which shows the byte order.
func typeName(typ btf.Type) string {
	switch typ := typ.(type) {
	case *btf.Array:
		return fmt.Sprintf("%s[%d]", typeName(typ.Type), typ.Nelems)
	case *btf.Struct:
		return "struct " + typ.Name
	}
	return typ.TypeName()
}
