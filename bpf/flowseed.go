// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// seedPin is the name of the pinned one-element map below root that has the seed: a bpf file
// system has no regular files.
const seedPin = "flow-seed"

// FlowSeed returns the node's secret that goes into the hash of a flow's addresses and ports,
// by which a backend is chosen. It is the pinned one of an earlier daemon, so that a flow whose
// entry is lost keeps its backend; or else a new one, which FlowSeed pins.
func FlowSeed(root string) (uint64, error) {
	pin := filepath.Join(root, seedPin)
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return newFlowSeed(pin)
	}
	if err != nil {
		return 0, fmt.Errorf("open the pinned seed %s: %w", pin, err)
	}
	defer m.Close()
	var seed uint64
	if err := m.Lookup(uint32(0), &seed); err != nil {
		return 0, fmt.Errorf("read the pinned seed %s: %w", pin, err)
	}
	return seed, nil
}

func newFlowSeed(pin string) (uint64, error) {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never returns an error
	seed := binary.NativeEndian.Uint64(b[:])
	return seed, pinFlowSeed(pin, seed)
}

// keepFlowSeed pins the seed again if somebody removed the pin, and reports whether that was
// so.
func keepFlowSeed(root string, seed uint64) (repaired bool, err error) {
	pin := filepath.Join(root, seedPin)
	if _, err := os.Lstat(pin); !errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return true, pinFlowSeed(pin, seed)
}

func pinFlowSeed(pin string, seed uint64) error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "flow_seed", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err == nil {
		defer m.Close()
		if err = m.Put(uint32(0), seed); err == nil {
			err = m.Pin(pin)
		}
	}
	if err != nil {
		return fmt.Errorf("keep the seed of flows at %s: %w", pin, err)
	}
	return nil
}

func removeFlowSeed(root string) error {
	if err := os.Remove(filepath.Join(root, seedPin)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the pinned seed: %w", err)
	}
	return nil
}
