// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"math/bits"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
)

// Keys and values in Go have the size that the map's declaration in C has.
func TestLayout(t *testing.T) {
	specs, err := Spec(DefaultSizes())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct{ key, value uintptr }{
		mapServices:     {unsafe.Sizeof(FrontendKey{}), unsafe.Sizeof(Frontend{})},
		mapSlots:        {4, unsafe.Sizeof(slot{}.ID)},
		mapBackends:     {4, unsafe.Sizeof(Backend{})},
		mapBackendStats: {4, unsafe.Sizeof(uint64(0))},
		mapSockPeer:     {4, unsafe.Sizeof(SockFlow{})},
		mapSockBefore:   {4, unsafe.Sizeof(SockFlow{})},
		mapLocalPorts:   {unsafe.Sizeof(abiLocalPortKey{}), 8},
		mapAffinity:     {unsafe.Sizeof(AffinityKey{}), unsafe.Sizeof(AffinityValue{})},
		mapAddrs:        {unsafe.Sizeof(abiAddr{}), unsafe.Sizeof(abiAddrInfo{})},
		mapSources:      {unsafe.Sizeof(SourceRangeKey{}), 1},
		mapClientAddrs:  {unsafe.Sizeof(abiClientKey{}), unsafe.Sizeof(abiClientAddr{})},
		mapFlows:        {unsafe.Sizeof(FlowKey{}), unsafe.Sizeof(Flow{})},
		mapFlowsNew:     {unsafe.Sizeof(FlowKey{}), unsafe.Sizeof(Flow{})},
		mapDirects:      {unsafe.Sizeof(FlowKey{}), unsafe.Sizeof(uint64(0))},
		mapFragments:    {unsafe.Sizeof(abiFragmentKey{}), unsafe.Sizeof(abiFragment{})},
		mapNames:        {4, unsafe.Sizeof(abiServiceName{})},
		mapCounters:     {4, unsafe.Sizeof(uint64(0))},
		mapMeta:         {4, unsafe.Sizeof(Meta{})},
		mapProblems:     {4, unsafe.Sizeof(abiProblem{})},
	} {
		m := specs[name]
		if uintptr(m.KeySize) != want.key || uintptr(m.ValueSize) != want.value {
			t.Errorf("map %s: key %d, value %d bytes; in Go %d and %d", name, m.KeySize, m.ValueSize, want.key, want.value)
		}
	}
}

// Elements of an array are 8-byte aligned in memory: types that are mapped must have that
// stride.
func TestStride(t *testing.T) {
	specs, err := Spec(DefaultSizes())
	if err != nil {
		t.Fatal(err)
	}
	for name, stride := range map[string]uintptr{
		mapSlots:        unsafe.Sizeof(slot{}),
		mapBackends:     unsafe.Sizeof(Backend{}),
		mapBackendStats: unsafe.Sizeof(uint64(0)),
		mapMeta:         unsafe.Sizeof(Meta{}),
		mapProblems:     unsafe.Sizeof(abiProblem{}),
	} {
		m := specs[name]
		if rounded := uintptr(m.ValueSize+7) &^ 7; rounded != stride {
			t.Errorf("map %s: elements are %d bytes apart, in Go %d", name, rounded, stride)
		}
		const mmapable = 1 << 10 // BPF_F_MMAPABLE
		if m.Type != ebpf.Array || m.Flags&mmapable == 0 {
			t.Errorf("map %s is no array that can be mapped into memory", name)
		}
	}
}

// The object declares every map, and maps with a size flag get that size.
func TestSpecSizes(t *testing.T) {
	sizes := Sizes{Services: 17, Slots: 18, Backends: 19, Affinity: 20, Sources: 21, Flows: 22}
	specs, err := Spec(sizes)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{
		mapServices: 17, mapNames: 17, mapSlots: 18, mapBackends: 19, mapBackendStats: 19, mapAffinity: 20, mapSources: 21, mapFlows: 22,
	} {
		if got := specs[name].MaxEntries; got != want {
			t.Errorf("map %s: %d entries, want %d", name, got, want)
		}
		if flagOf(name) == "" {
			t.Errorf("map %s has no flag", name)
		}
	}
	for name := range specs {
		if sizes.of(name) == 0 != (flagOf(name) == "") {
			t.Errorf("map %s: size %d, flag %q", name, sizes.of(name), flagOf(name))
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
