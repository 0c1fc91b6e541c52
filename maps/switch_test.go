// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// The steps at which a daemon that replaces maps is killed in these tests.
const (
	staged    = iota // the new maps are filled
	madeWay          // the first step of Switch
	switched         // both steps; some of its programs are attached
	removing         // Commit has removed a part of the older set
	committed        // nothing is left to do
	killedAt
)

// sized returns sizes that differ from small only in some maps.
func sized(n uint32) maps.Sizes {
	s := small
	s.Flows, s.Affinity = n, n
	return s
}

// replaceMaps changes the pins as a daemon does that is killed after a step.
func replaceMaps(t *testing.T, root string, sizes maps.Sizes, until int) *maps.Set {
	t.Helper()
	set, _ := open(t, root, sizes)
	k, err := maps.NewKernel(set)
	if err != nil {
		t.Fatal(err)
	}
	k.UpdateMeta(func(m *maps.DaemonMeta) { m.Abi = embeddedABI(t) })
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	for i, step := range maps.SwitchSteps(set) {
		if until > i {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if until < removing {
		return set
	}
	if _, err := set.Commit(); err != nil {
		t.Fatal(err)
	}
	if until == removing {
		dir := filepath.Join(root, "maps-old")
		clone, err := set.Map("names").Clone()
		if err == nil {
			defer clone.Close()
			err = errors.Join(os.Mkdir(dir, 0o700), clone.Pin(filepath.Join(dir, "names")))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return set
}

// Two daemons in a row are killed at any step of replacing maps. The next one, whichever sizes
// it has, gets all contents: entries with their ids, connections from outside, and a single
// directory of pins.
func TestKilledWhileReplacing(t *testing.T) {
	for first := range killedAt {
		for second := range killedAt {
			for _, then := range []uint32{32, 64, 128} {
				if testing.Short() && (first+second+int(then/32))%3 > 0 {
					continue
				}
				t.Run(fmt.Sprintf("%d, %d, then size %d", first, second, then), func(t *testing.T) {
					testKilled(t, []int{first, second}, sized(then))
				})
			}
		}
	}
}

func testKilled(t *testing.T, killed []int, then maps.Sizes) {
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, sized(32))
	fill(t, k, embeddedABI(t))
	before := dump(t, k).Text()
	set, _ := open(t, root, sized(32))
	inEffect := []*maps.Set{set} // their programs are attached
	flows := []maps.Flow{}
	note := func() { // one flow by the programs of each set
		for _, set := range inEffect {
			f := numberedFlow(len(flows), 5)
			putFlows(t, set, f)
			flows = append(flows, f)
		}
	}
	note()
	for round, until := range killed {
		next := replaceMaps(t, root, sized([]uint32{64, 128}[round]), until)
		switch {
		case until >= removing:
			inEffect = []*maps.Set{next}
		case until == switched:
			inEffect = append(inEffect, next)
		}
		note()
		loaded, err := maps.Load(root)
		if err != nil {
			t.Fatalf("round %d: what is pinned can't be read: %v", round, err)
		}
		_ = loaded.Close()
	}
	last, _ := open(t, root, then)
	if err := last.Switch(); err != nil {
		t.Fatal(err)
	}
	note()
	if carried, err := last.Commit(); err != nil || carried != (maps.CarriedFlows{}) {
		t.Errorf("%+v, %v", carried, err)
	}
	kernel, err := maps.NewKernel(last)
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	if after := dump(t, kernel).Text(); after != before {
		t.Errorf("entries are\n%s\nwere\n%s", after, before)
	}
	has := readFlows(t, last)
	for i, f := range flows {
		for _, k := range f.Keys() {
			if _, there := has[k]; !there {
				t.Errorf("of flow %d of %d is lost: %s", i, len(flows), k)
			}
		}
	}
	if names := pins(t, root, "."); len(names) != 1 || names[0] != "maps" {
		t.Errorf("left are %v", names)
	}
}

// A set that was made at a first start, and never filled, is not adopted.
func TestKilledAtFirstStart(t *testing.T) {
	root := mapstest.BPFFS(t)
	set, _ := open(t, root, small)
	if err := os.Rename(filepath.Join(root, "maps"), filepath.Join(root, "maps-new")); err != nil { // before its last step
		t.Fatal(err)
	}
	if _, err := maps.Load(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load: %v", err)
	}
	again, result := open(t, root, small)
	if result != (maps.OpenResult{}) || id(t, again.Map("services")) == id(t, set.Map("services")) {
		t.Errorf("%+v", result)
	}
	if names := pins(t, root, "."); len(names) != 1 || names[0] != "maps" {
		t.Errorf("left are %v", names)
	}
}

// CheckABI recognizes pinned maps of another ABI without knowing their layout.
func TestCheckABI(t *testing.T) {
	root := mapstest.BPFFS(t)
	if err := maps.CheckABI(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without maps: %v", err)
	}
	k, _ := mapstest.Open(t, root, small)
	for abi, fits := range map[uint32]bool{0: true, embeddedABI(t): true, embeddedABI(t) - 1: false, embeddedABI(t) + 1: false} {
		k.UpdateMeta(func(m *maps.DaemonMeta) { m.Abi = abi })
		err := maps.CheckABI(root)
		var other *maps.ABIError
		if (err == nil) != fits || !fits && (!errors.As(err, &other) || other.Pinned != abi || other.Binary != embeddedABI(t)) {
			t.Errorf("ABI %d: %v", abi, err)
		}
	}
	if err := os.Remove(filepath.Join(root, "maps", "meta")); err != nil {
		t.Fatal(err)
	}
	if err := maps.CheckABI(root); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without map meta: %v", err)
	}
}
