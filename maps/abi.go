// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// ABI is SHUNT_ABI of the embedded objects.
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

// CheckABI reports whether the maps pinned below root mean what this binary means. It
// reads no more than the number: maps of another ABI may have another layout, and must
// not be opened for reading. The error is fs.ErrNotExist where there are none.
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
	// The first field of every ABI. 0: made, but their daemon has said nothing yet.
	if abi := binary.NativeEndian.Uint32(value); abi != want && abi != 0 {
		return &ABIError{Dir: dir, Pinned: abi, Binary: want}
	}
	return nil
}

// ABIError says that pinned maps are of another version of shunt.
type ABIError struct {
	Dir            string
	Pinned, Binary uint32
}

// Error says what to do, too.
func (e *ABIError) Error() string {
	return fmt.Sprintf("the maps in %s have ABI %d and this shunt reads ABI %d: use the shunt of the daemon that runs here "+
		"(in its pod: kubectl exec), or start this one's daemon (shunt run), which replaces them", e.Dir, e.Pinned, e.Binary)
}

// sameABI says whether an older set means what this binary means.
func (s *Set) sameABI() bool {
	want, err := ABI()
	var meta Meta
	return err == nil && s.maps[mapMeta].Lookup(uint32(0), &meta) == nil && meta.Abi == want
}
