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
	"github.com/cilium/ebpf/rlimit"
)

// Memory is a pinned map of texts that a daemon leaves for the next one and for `shunt status`.
// No program reads it, and it belongs to no Set. So it is declared here instead of in C, and
// survives a change of the ABI, when its texts are needed most.
type Memory struct {
	texts *ebpf.Map
}

// MemoryOf is the key of a text. The format of a key's text never changes.
type MemoryOf uint32

// The texts, each JSON.
const (
	// MemoryServers are the endpoints of the API server that a daemon has found.
	MemoryServers MemoryOf = 1
	// MemoryWatches is the state of the watches of the API server.
	MemoryWatches MemoryOf = 2
	// MemoryChecks and the numbers after it, up to MemoryChecksEnd, are parts of the list of
	// healthCheckNodePorts.
	MemoryChecks    MemoryOf = 3
	MemoryChecksEnd MemoryOf = 8
)

const (
	memoryPin = "memory"
	// MemoryText is the largest size of a text in bytes. An element must fit into 4096 bytes.
	MemoryText = 3584
	memorySize = 8
)

// memorySpec returns a hash without preallocation: an update replaces the element as a whole,
// so that a reader never sees a half-written text.
func memorySpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: "shunt_memory", Type: ebpf.Hash, KeySize: 4, ValueSize: MemoryText,
		MaxEntries: memorySize, Flags: noPrealloc}
}

// noPrealloc is BPF_F_NO_PREALLOC.
const noPrealloc = 1

// OpenMemory opens the memory below root, or makes it. It replaces a map of another layout.
func OpenMemory(root string) (*Memory, error) {
	m, err := LoadMemory(root)
	if err == nil {
		return m, nil
	}
	path := filepath.Join(root, memoryPin)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace pinned map %s: %w", path, err)
	}
	// This may be the first map of the process. Before Linux 5.11 maps count as locked memory.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("make map %s: raise the limit of locked memory (RLIMIT_MEMLOCK): %w", path, err)
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

// LoadMemory opens the existing memory below root. The error wraps fs.ErrNotExist where there
// is none.
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

// Put writes v as JSON. It returns an error if the text is longer than MemoryText.
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

// Get reads a text into v. If there is no text, it does not change v.
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

// Close closes the file descriptor. The pin remains.
func (m *Memory) Close() error { return m.texts.Close() }
