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

// nameLength is how many bytes of a map's name the kernel retains.
const nameLength = 15

// Left has the pinned maps that a daemon has left below its directory of pins.
type Left struct {
	// Pins are the paths of shunt's maps. Foreign are the other paths in the directories of maps,
	// and the path of the memory if another map is pinned there.
	Pins, Foreign []string
	// IDs are the ids of the maps at Pins. A program that uses one of them is the daemon's.
	IDs []ebpf.MapID
}

// FindLeft finds the pinned maps below root. A pin is shunt's if it has a path that the daemon
// uses and its map has the pin's name.
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

// Remove unpins shunt's maps below root, and then removes the empty directories.
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
