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

// How one set of pinned maps replaces another. A daemon may be killed between any two of these
// steps; the next one continues from the state that it finds:
//
//	maps-new is made and filled beside maps     next start: maps-new is removed
//	Switch: maps becomes maps-old               next start: maps-new becomes maps
//	Switch: maps-new becomes maps               next start: maps is adopted; what
//	programs with the new maps are attached       programs wrote to maps-old is
//	Commit: flows are copied from maps-old        copied from there, and maps-old
//	Commit: maps-old is removed                   is removed, both by Commit
//
// From Switch on a start adopts the new set, which is filled. A set that programs may still write
// to retains its pins until its contents are no longer needed. All renames are to unused names:
// exchanging two names needs Linux 5.17.
const (
	pinDir    = "maps"
	stagedDir = "maps-new" // no dot: a bpf file system refuses names with one
	// oldDir and oldDir-N: a daemon that is killed after Switch leaves one, and the next may
	// need to switch again.
	oldDir = "maps-old"
)

// olderFlows is the map flows of an older set of the same ABI that this set does not share.
type olderFlows struct {
	flows *ebpf.Map
	// until is the latest use (Flow.Used) of the entries that Open copied.
	until uint64
	// alone reports whether this set's map flows had no other entries than those copied from this
	// older map.
	alone bool
}

// pinnedDir returns the directory of the set that the next start adopts.
func pinnedDir(root string) string {
	dir := filepath.Join(root, pinDir)
	if isUnfinished(root) {
		return filepath.Join(root, stagedDir)
	}
	return dir
}

// isUnfinished reports whether a Switch was interrupted between its two renames.
func isUnfinished(root string) bool {
	_, noMaps := os.Lstat(filepath.Join(root, pinDir))
	_, noStaged := os.Lstat(filepath.Join(root, stagedDir))
	return errors.Is(noMaps, fs.ErrNotExist) && noStaged == nil && len(oldDirs(root)) > 0
}

// oldDirs returns the directories of replaced sets, the newest last.
func oldDirs(root string) (dirs []string) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil // no root: a caller that needs it reports that
	}
	for _, e := range entries {
		if e.Name() == oldDir || strings.HasPrefix(e.Name(), oldDir+"-") {
			dirs = append(dirs, filepath.Join(root, e.Name()))
		}
	}
	slices.SortFunc(dirs, func(a, b string) int { // -10 after -9
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return dirs
}

// freeOldDir returns an unused name for the set that is replaced.
func freeOldDir(root string) string {
	taken := oldDirs(root)
	dir := filepath.Join(root, oldDir)
	for n := 2; slices.Contains(taken, dir); n++ {
		dir = filepath.Join(root, fmt.Sprintf("%s-%d", oldDir, n))
	}
	return dir
}

// recoverPins finishes an interrupted Switch, or removes a staged set that was not finished.
func recoverPins(root string) error {
	staged := filepath.Join(root, stagedDir)
	if isUnfinished(root) {
		if err := os.Rename(staged, filepath.Join(root, pinDir)); err != nil {
			return fmt.Errorf("finish the replacement of maps that an earlier daemon began: %w", err)
		}
		return nil
	}
	if err := os.RemoveAll(staged); err != nil {
		return fmt.Errorf("remove maps that an earlier start left half-made: %w", err)
	}
	return nil
}

// carryFirst copies the flows of all older sets while their programs are still in effect, so that
// Commit has fewer entries to copy. Errors of copying are ignored here: Commit reports them.
func (s *Set) carryFirst(root string) error {
	dirs := oldDirs(root)
	if s.staged {
		dirs = append(dirs, filepath.Join(root, pinDir))
	}
	for _, dir := range dirs {
		old, err := s.openOlder(dir)
		if err != nil {
			return err
		}
		if old == nil {
			continue
		}
		_, until, _ := carryFlows(old, s.maps[mapFlows])
		s.older = append(s.older, olderFlows{flows: old, until: until, alone: s.staged && len(dirs) == 1})
	}
	return nil
}

// openOlder opens the map flows pinned in dir; nil where this set shares it, or it can't be
// opened or has another ABI.
func (s *Set) openOlder(dir string) (*ebpf.Map, error) {
	set, err := loadDir(dir)
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // half-removed, or of another version: there is nothing to copy
	}
	defer set.Close()
	own, err := s.maps[mapFlows].Info()
	if err != nil {
		return nil, fmt.Errorf("ask for the id of map %s: %w", mapFlows, err)
	}
	theirs, err := set.maps[mapFlows].Info()
	if err != nil {
		return nil, fmt.Errorf("ask for the id of map %s in %s: %w", mapFlows, dir, err)
	}
	ownID, _ := own.ID()
	if id, _ := theirs.ID(); id == ownID || !set.sameABI() {
		return nil, nil //nolint:nilnil // see above
	}
	return set.maps[mapFlows].Clone()
}

// Switch renames a staged set to the directory that the next start adopts, and retains the older
// set beside it. It must be called when the new set is filled, and before programs that use it
// are in effect. So no program reads a newer set than the pinned one.
func (s *Set) Switch() error {
	for _, step := range s.switchSteps() {
		if err := step(); err != nil {
			return err
		}
	}
	return s.expectNotes()
}

// switchSteps returns the steps of Switch. Tests stop between them.
func (s *Set) switchSteps() []func() error {
	if !s.staged {
		return nil
	}
	root := filepath.Dir(s.dir)
	dir := filepath.Join(root, pinDir)
	return []func() error{
		func() error {
			if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			old := freeOldDir(root)
			if err := os.Rename(dir, old); err != nil {
				return fmt.Errorf("rename pinned maps %s to %s: %w", dir, old, err)
			}
			return nil
		},
		func() error {
			if err := os.Rename(s.dir, dir); err != nil {
				return fmt.Errorf("rename pinned maps %s to %s: %w", s.dir, dir, err)
			}
			s.dir, s.staged = dir, false
			return nil
		},
	}
}

// Commit copies the entries that programs have written to the older sets since Open, and removes
// these sets. It must be called when programs that use this set are in effect.
func (s *Set) Commit() (flows CarriedFlows, err error) {
	if err := s.Switch(); err != nil { // does nothing if Switch was called before
		return flows, err
	}
	var errs []error
	for _, old := range s.older {
		if old.alone {
			errs = append(errs, dropFlows(old.flows, s.maps[mapFlows], old.until))
		}
		lost, _, err := carryFlows(old.flows, s.maps[mapFlows])
		flows.Lost += lost
		errs = append(errs, err, old.flows.Close())
	}
	s.older = nil
	flows.Err = errors.Join(errs...)
	return flows, removeOld(filepath.Dir(s.dir))
}

func removeOld(root string) error {
	for _, dir := range oldDirs(root) {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove the pins of the maps before these: %w", err)
		}
	}
	return nil
}
