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

// How one set of pinned maps takes the place of another. A daemon may be killed
// between any two of these steps, and the next one goes on from what it finds:
//
//	maps-new is made and filled beside maps     next start: maps-new is removed
//	Switch: maps becomes maps-old               next start: maps-new becomes maps
//	Switch: maps-new becomes maps               next start: maps is adopted; what
//	programs with the new maps are attached       programs wrote to maps-old is
//	Commit: flows are copied from maps-old        copied from there, and maps-old
//	Commit: maps-old is removed                   is removed, both by Commit
//
// From Switch on the filled set is the one that a start adopts, and a set that
// programs may still write to keeps its pins until nothing of it is needed. Only
// renames to names that are free are used: exchanging two names needs Linux 5.17.
const (
	pinDir    = "maps"
	stagedDir = "maps-new" // no dot: a bpf file system takes none in names
	// oldDir and oldDir-N: a daemon that is killed after Switch leaves one, and the
	// next may have to switch again.
	oldDir = "maps-old"
)

// olderFlows is a map flows of an older set of the same ABI, and another than ours.
type olderFlows struct {
	flows *ebpf.Map
	// until is the latest use (Flow.Used) of what was copied at first.
	until uint64
	// alone: ours had nothing but what was copied from here.
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

// isUnfinished reports whether a Switch was interrupted: the old set has made way, and
// the new one has not taken its place.
func isUnfinished(root string) bool {
	_, noMaps := os.Lstat(filepath.Join(root, pinDir))
	_, noStaged := os.Lstat(filepath.Join(root, stagedDir))
	return errors.Is(noMaps, fs.ErrNotExist) && noStaged == nil && len(oldDirs(root)) > 0
}

// oldDirs returns the directories of sets that made way, the last one last.
func oldDirs(root string) (dirs []string) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil // no root, no directories; whoever needs it says so
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

// freeOldDir returns a name for the set that makes way.
func freeOldDir(root string) string {
	taken := oldDirs(root)
	dir := filepath.Join(root, oldDir)
	for n := 2; slices.Contains(taken, dir); n++ {
		dir = filepath.Join(root, fmt.Sprintf("%s-%d", oldDir, n))
	}
	return dir
}

// recoverPins finishes an interrupted Switch, or removes what was staged and never
// filled.
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

// carryFirst copies the flows of all older sets, while their programs are still in
// effect: the more, the less is left for Commit. Commit reports what went wrong.
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

// openOlder opens the flows that are pinned in dir; nil where they are this set's own,
// or can't be read, as those of another ABI.
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

// Switch renames a staged set to where the next start looks, and keeps the older set
// beside it. To be called when this set is filled, and before programs that use it are in
// effect: so the pinned set is never older than one that a program reads.
func (s *Set) Switch() error {
	for _, step := range s.switchSteps() {
		if err := step(); err != nil {
			return err
		}
	}
	return s.expectNotes()
}

// switchSteps are what Switch does, one at a time for tests that stop between them.
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

// Commit removes older sets, after it has copied what their programs noted since Open.
// To be called once programs that use this set are in effect.
func (s *Set) Commit() (flows CarriedFlows, err error) {
	if err := s.Switch(); err != nil { // unless that was done
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
