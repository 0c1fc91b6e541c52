// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// Memory is a pinned map of texts that a daemon leaves for the next one and for
// `shunt status`. No program reads it, and it belongs to no Set: it is declared here
// and not in C, and it outlives a change of the ABI, when it is needed most.
type Memory struct {
	texts *ebpf.Map
}

// MemoryOf names a text of Memory. A number stands for one form of text for ever.
type MemoryOf uint32

// The texts, each JSON.
const (
	// MemoryServers are the endpoints of the API server that were found.
	MemoryServers MemoryOf = 1
	// MemoryWatches is how the watches of the API server go.
	MemoryWatches MemoryOf = 2
	// MemoryChecks and the numbers after it, up to MemoryChecksEnd, are parts of the list of
	// healthCheckNodePorts.
	MemoryChecks    MemoryOf = 3
	MemoryChecksEnd MemoryOf = 8
)

const (
	memoryPin = "memory"
	// MemoryText bounds a text, in bytes. An element has to fit in 4096.
	MemoryText = 3584
	memorySize = 8
)

// memorySpec is a hash without preallocation: an update replaces the element as a
// whole, so a reader never sees half of a text.
func memorySpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: "shunt_memory", Type: ebpf.Hash, KeySize: 4, ValueSize: MemoryText,
		MaxEntries: memorySize, Flags: noPrealloc}
}

// noPrealloc is BPF_F_NO_PREALLOC.
const noPrealloc = 1

// OpenMemory opens the memory below root, or makes it. One that has another form is
// replaced.
func OpenMemory(root string) (*Memory, error) {
	m, err := LoadMemory(root)
	if err == nil {
		return m, nil
	}
	path := filepath.Join(root, memoryPin)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace pinned map %s: %w", path, err)
	}
	texts, err := ebpf.NewMap(memorySpec())
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", path, err)
	}
	if err := texts.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pin map %s: %w", path, err), texts.Close())
	}
	return &Memory{texts}, nil
}

// LoadMemory opens the memory below root as it is; fs.ErrNotExist where there is none.
func LoadMemory(root string) (*Memory, error) {
	path := filepath.Join(root, memoryPin)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("open pinned map %s: %w", path, err)
	}
	if err := memorySpec().Compatible(m); err != nil {
		return nil, errors.Join(fmt.Errorf("pinned map %s: %w", path, err), m.Close())
	}
	return &Memory{m}, nil
}

// Put replaces a text.
func (m *Memory) Put(of MemoryOf, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("remember text %d: %w", of, err)
	}
	if len(text) > MemoryText {
		return fmt.Errorf("remember text %d: it has %d bytes, there is room for %d", of, len(text), MemoryText)
	}
	value := make([]byte, MemoryText)
	copy(value, text)
	if err := m.texts.Put(uint32(of), value); err != nil {
		return fmt.Errorf("remember text %d: %w", of, err)
	}
	return nil
}

// Get reads a text into v, and leaves v as it is where there is none.
func (m *Memory) Get(of MemoryOf, v any) error {
	var value []byte
	err := m.texts.Lookup(uint32(of), &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(bytes.TrimRight(value, "\x00"), v)
	}
	if err != nil {
		return fmt.Errorf("read text %d of map %s: %w", of, memoryPin, err)
	}
	return nil
}

// Close closes the file descriptor; the pin stays.
func (m *Memory) Close() error { return m.texts.Close() }
