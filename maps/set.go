// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// Set is the open maps by name: programs are loaded with them, and Kernel writes to them.
type Set struct {
	maps map[string]*ebpf.Map
	dir  string // directory of the pins
	// staged reports whether the set is still pinned in stagedDir, beside an older set: until
	// Switch.
	staged bool
	// older are the maps flows of older sets that the programs in effect may still write to.
	// Commit copies their entries.
	older []olderFlows
}

// Spec returns the maps' declarations with the given sizes.
func Spec(sizes Sizes) (map[string]*ebpf.MapSpec, error) {
	spec, err := loadAbi()
	if err != nil {
		return nil, fmt.Errorf("read the embedded map declarations: %w", err)
	}
	defaults := DefaultSizes()
	specs := make(map[string]*ebpf.MapSpec, len(spec.Maps))
	for _, row := range table {
		m := spec.Maps[row.name]
		if m == nil {
			return nil, fmt.Errorf("the embedded object has no map %s", row.name)
		}
		for _, f := range row.sizes {
			if n := *f.of(&sizes); n != 0 {
				m.MaxEntries += n - *f.of(&defaults)
			}
		}
		specs[row.name] = m
	}
	return specs, nil
}

// DefaultSizes returns the sizes in the C declarations.
func DefaultSizes() Sizes {
	spec, err := loadAbi()
	if err != nil {
		return Sizes{} // the object is embedded: only a broken build gets here, and Spec reports it
	}
	return sizesFrom(func(name string) uint32 { return spec.Maps[name].MaxEntries })
}

// OpenResult describes whether Open adopted an earlier daemon's maps, and if not, why.
type OpenResult struct {
	// Adopted reports whether the maps are those that an earlier daemon pinned.
	Adopted bool
	// Replaces is why an earlier daemon's maps could not be adopted; empty if there were none.
	// They remain in use until programs with the new maps are attached.
	Replaces string
}

// CarriedFlows is the result of copying an earlier daemon's flows.
type CarriedFlows struct {
	// Lost counts the entries for which a smaller map flows had no room. Such a connection
	// breaks, unless programs make the entry again from another entry of the flow.
	Lost int
	// Err is why not all entries could be copied, or nil.
	Err error
}

// Open adopts the maps pinned below root if they have this ABI and these sizes. If not, it makes
// new maps. The old maps remain pinned until Commit (see switch.go for the order). root is a
// directory on a bpf file system.
func Open(root string, sizes Sizes) (*Set, OpenResult, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, OpenResult{}, fmt.Errorf("lift the limit on locked memory, which kernels before 5.11 count maps by: %w", err)
	}
	specs, err := Spec(sizes)
	if err != nil {
		return nil, OpenResult{}, err
	}
	if err := recoverPins(root); err != nil {
		return nil, OpenResult{}, err
	}
	set, result, err := adoptOrStage(root, specs)
	if err != nil {
		return nil, OpenResult{}, err
	}
	if err := set.carryFirst(root); err != nil {
		return nil, OpenResult{}, errors.Join(err, set.Close())
	}
	return set, result, nil
}

// adoptOrStage returns the pinned set if it has the wanted ABI, layout and sizes, else a new one.
func adoptOrStage(root string, specs map[string]*ebpf.MapSpec) (*Set, OpenResult, error) {
	old, err := Load(root)
	if errors.Is(err, fs.ErrNotExist) {
		set, err := create(filepath.Join(root, stagedDir), specs, nil)
		if err != nil {
			return nil, OpenResult{}, err
		}
		set.staged = true
		if err := set.Switch(); err != nil { // there is no older set in use
			return nil, OpenResult{}, errors.Join(err, set.Close())
		}
		return set, OpenResult{}, nil
	}
	why := ""
	if err != nil {
		why = err.Error()
	} else if why = old.misfit(specs); why == "" {
		return old, OpenResult{Adopted: true}, nil
	}
	set, err := create(filepath.Join(root, stagedDir), specs, old)
	if err == nil && old != nil && old.sameABI() {
		err = carryOver(old, set)
	}
	if old != nil {
		err = errors.Join(err, old.Close())
	}
	if err != nil && set != nil {
		err = errors.Join(err, set.Close(), os.RemoveAll(set.dir))
	}
	if err != nil {
		return nil, OpenResult{}, err
	}
	set.staged = true
	return set, OpenResult{Replaces: why}, nil
}

// Load opens the pinned maps, and creates none. The error wraps fs.ErrNotExist where there are
// none.
func Load(root string) (*Set, error) {
	dir := pinnedDir(root)
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("look for pinned maps: %w", err)
	}
	return loadDir(dir)
}

func loadDir(dir string) (*Set, error) {
	set := &Set{maps: map[string]*ebpf.Map{}, dir: dir}
	for _, row := range table {
		name := row.name
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			_ = set.Close()
			// Not ErrNotExist: a set with a missing map is not an empty one.
			return nil, fmt.Errorf("open pinned map %s in %s: %v", name, dir, err) //nolint:errorlint // on purpose, see above
		}
		set.maps[name] = m
	}
	return set, nil
}

// misfit returns why a set can't be adopted if these specs are wanted, or "" if it can.
func (s *Set) misfit(specs map[string]*ebpf.MapSpec) string {
	want, err := ABI()
	if err != nil {
		return err.Error()
	}
	var meta Meta
	if err := s.maps[mapMeta].Lookup(uint32(0), &meta); err != nil {
		return fmt.Sprintf("map meta can't be read: %v", err)
	}
	// 0: the maps are new, and their daemon died before it wrote the number.
	if meta.Abi != want && meta.Abi != 0 {
		return fmt.Sprintf("they have ABI %d, this binary has %d", meta.Abi, want)
	}
	for _, row := range table {
		name := row.name
		m, spec := s.maps[name], specs[name]
		if m.MaxEntries() != spec.MaxEntries {
			asks := flagOf(name)
			if asks == "" {
				asks = "this binary"
			}
			return fmt.Sprintf("map %s has room for %d entries, %s asks for %d",
				name, m.MaxEntries(), asks, spec.MaxEntries)
		}
		if m.Type() != spec.Type || m.KeySize() != spec.KeySize || m.ValueSize() != spec.ValueSize {
			return fmt.Sprintf("map %s has another layout", name)
		}
	}
	return ""
}

// create makes and pins maps in dir. It reuses the maps of old that are shared by their fate in
// the table and have the wanted type and sizes.
func create(dir string, specs map[string]*ebpf.MapSpec, old *Set) (*Set, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory %s for pinned maps: %w", dir, err)
	}
	set := &Set{maps: map[string]*ebpf.Map{}, dir: dir}
	for _, row := range table {
		name := row.name
		m, err := createOne(row, specs[name], old)
		if err == nil {
			set.maps[name] = m
			err = m.Pin(filepath.Join(dir, name))
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make and pin map %s with %d entries: %w",
				name, specs[name].MaxEntries, err), set.Close(), os.RemoveAll(dir))
		}
	}
	return set, nil
}

func createOne(row tableRow, spec *ebpf.MapSpec, old *Set) (*ebpf.Map, error) {
	if old != nil && (row.fate == shared || row.fate == sharedInABI && old.sameABI()) {
		m := old.maps[row.name]
		if m.Type() == spec.Type && m.KeySize() == spec.KeySize && m.ValueSize() == spec.ValueSize && m.MaxEntries() == spec.MaxEntries {
			c, err := m.Clone()
			if err != nil {
				return nil, err
			}
			return c, c.Unpin()
		}
	}
	return ebpf.NewMap(spec)
}

// Map returns an open map by its name in C, or nil.
func (s *Set) Map(name string) *ebpf.Map { return s.maps[name] }

// All returns the open maps by name, for loading programs with them.
func (s *Set) All() map[string]*ebpf.Map { return s.maps }

// Close closes the file descriptors. Pins remain.
func (s *Set) Close() error {
	var errs []error
	for _, m := range s.maps {
		errs = append(errs, m.Close())
	}
	for _, o := range s.older {
		errs = append(errs, o.flows.Close())
	}
	s.older = nil
	return errors.Join(errs...)
}
