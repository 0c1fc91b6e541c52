// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// nameLength is how much of a map's name the kernel keeps.
const nameLength = 15

// Left is what a daemon has left below its directory.
type Left struct {
	// Pins are those of our maps, Foreign paths that nothing shows to be ours.
	Pins, Foreign []string
	// IDs are the maps', by which the programs are known that work with them.
	IDs []ebpf.MapID
}

// FindLeft looks for maps below root. A pin is ours where the daemon would make it and
// when it is of a map that has the pin's name.
func FindLeft(root string) (left Left, err error) {
	dirs := append(oldDirs(root), filepath.Join(root, pinDir), filepath.Join(root, stagedDir))
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return left, fmt.Errorf("look for pinned maps: %w", err)
		}
		for _, e := range entries {
			left.add(filepath.Join(dir, e.Name()), e.Name())
		}
	}
	if path := filepath.Join(root, memoryPin); exists(path) {
		left.add(path, memorySpec().Name)
	}
	return left, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (l *Left) add(path, name string) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		l.Foreign = append(l.Foreign, path)
		return
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil || info.Name != name[:min(len(name), nameLength)] {
		l.Foreign = append(l.Foreign, path)
		return
	}
	l.Pins = append(l.Pins, path)
	if id, ok := info.ID(); ok {
		l.IDs = append(l.IDs, id)
	}
}

// Remove unpins our maps below root, and removes the directories that are empty then.
func Remove(root string) error {
	left, err := FindLeft(root)
	if err != nil {
		return err
	}
	for _, pin := range left.Pins {
		if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove pinned map: %w", err)
		}
	}
	for _, dir := range append(oldDirs(root), filepath.Join(root, pinDir), filepath.Join(root, stagedDir)) {
		holds := slices.ContainsFunc(left.Foreign, func(path string) bool { return strings.HasPrefix(path, dir+"/") })
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !holds {
			return fmt.Errorf("remove directory of pinned maps: %w", err)
		}
	}
	return nil
}
