// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// KeepPins pins maps again if their pins below root are gone or belong to other maps, and returns
// the names of these maps. It does nothing for a staged set, before Switch.
func (s *Set) KeepPins(root string) (repaired []string, err error) {
	if s.staged {
		return nil, nil
	}
	dir := filepath.Join(root, pinDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory %s for pinned maps: %w", dir, err)
	}
	var errs []error
	for _, row := range table {
		name := row.name
		if again, err := keepPin(s.maps[name], filepath.Join(dir, name)); again {
			repaired = append(repaired, name)
			errs = append(errs, err)
		}
	}
	return repaired, errors.Join(errs...)
}

// KeepPin pins the memory again if its pin below root is gone or belongs to another map, and
// reports whether it did.
func (m *Memory) KeepPin(root string) (repaired bool, err error) {
	return keepPin(m.texts, filepath.Join(root, memoryPin))
}

func keepPin(m *ebpf.Map, pin string) (repaired bool, err error) {
	if isPinned(m, pin) {
		return false, nil
	}
	return true, pinAgain(m, pin)
}

func isPinned(m *ebpf.Map, pin string) bool {
	there, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return false
	}
	defer there.Close()
	theirs, err := there.Info()
	if err != nil {
		return false
	}
	ours, err := m.Info()
	if err != nil {
		return false
	}
	id, _ := theirs.ID()
	own, _ := ours.ID()
	return id == own
}

func pinAgain(m *ebpf.Map, pin string) error {
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the file at the path of a pinned map: %w", err)
	}
	again, err := m.Clone() // a clone has no path; m may have the path of its lost pin, which Pin would rename
	if err != nil {
		return fmt.Errorf("pin map %s again: %w", pin, err)
	}
	defer again.Close()
	if err := again.Pin(pin); err != nil {
		return fmt.Errorf("pin map %s again: %w", pin, err)
	}
	return nil
}
