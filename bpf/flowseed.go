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

// seedPin is the pin of the seed below root. A map of one element contains the seed, as a bpf
// file system has no regular files.
const seedPin = "flow-seed"

// FlowSeed returns the node's secret seed for the hash of a flow's addresses and ports, by which
// programs choose a backend. If an earlier daemon has pinned a seed, FlowSeed returns that one,
// so that a flow whose entry is lost gets the same backend again. Otherwise it makes a new seed
// and pins it.
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

// keepFlowSeed pins the seed again if the pin was removed, and reports whether it was.
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
