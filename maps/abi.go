// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// ABI returns SHUNT_ABI of the embedded objects.
func ABI() (uint32, error) {
	spec, err := loadAbi()
	if err != nil {
		return 0, fmt.Errorf("read the embedded map declarations: %w", err)
	}
	var abi uint32
	if err := spec.Variables[abiVarAbiVersion].Get(&abi); err != nil {
		return 0, fmt.Errorf("read the embedded ABI version: %w", err)
	}
	return abi, nil
}

// CheckABI returns an ABIError if the maps pinned below root have another ABI than this binary.
// It reads only the number: maps of another ABI may have another layout, and must not be opened
// for reading. The error wraps fs.ErrNotExist where there are no maps.
func CheckABI(root string) error {
	dir := pinnedDir(root)
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("look for pinned maps: %w", err)
	}
	want, err := ABI()
	if err != nil {
		return err
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, mapMeta), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		//nolint:errorlint // a part that is missing is not "there are none"
		return fmt.Errorf("open pinned map %s in %s: %v", mapMeta, dir, err)
	}
	defer m.Close()
	value, err := m.LookupBytes(uint32(0))
	if err == nil && len(value) < 4 {
		err = fmt.Errorf("its element has %d bytes", len(value))
	}
	if err != nil {
		return fmt.Errorf("read the ABI of the maps in %s: %w", dir, err)
	}
	// The number is the first field in every ABI. 0: the maps are new, and their daemon has not
	// written it yet.
	if abi := binary.NativeEndian.Uint32(value); abi != want && abi != 0 {
		return &ABIError{Dir: dir, Pinned: abi, Binary: want}
	}
	return nil
}

// ABIError means that a version of shunt with another ABI has made the pinned maps.
type ABIError struct {
	Dir            string
	Pinned, Binary uint32
}

// Error names both versions and the remedy.
func (e *ABIError) Error() string {
	return fmt.Sprintf("the maps in %s have ABI %d and this shunt reads ABI %d: use the shunt of the daemon that runs here "+
		"(in its pod: kubectl exec), or start this one's daemon (shunt run), which replaces them", e.Dir, e.Pinned, e.Binary)
}

// sameABI reports whether a set has the ABI of this binary.
func (s *Set) sameABI() bool {
	want, err := ABI()
	var meta Meta
	return err == nil && s.maps[mapMeta].Lookup(uint32(0), &meta) == nil && meta.Abi == want
}
