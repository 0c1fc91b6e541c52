// SPDX-License-Identifier: Apache-2.0

package soak_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"shunt/e2e/rig"
)

// pins returns the files below the daemon's directory on the bpf file system, sorted. Files
// that are added or removed during the read may be missing.
func (s *soak) pins() []string {
	s.t.Helper()
	var all []string
	err := filepath.WalkDir(s.d.Root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err == nil && !e.IsDir():
			all = append(all, path)
		}
		return err
	})
	s.check(err)
	return all
}

// restored waits until these pins exist again.
func (s *soak) restored(pins []string) {
	s.t.Helper()
	var missing []string
	defer func() {
		if len(missing) > 0 {
			s.t.Logf("missing: %v", missing)
		}
	}()
	rig.Eventually(s.t, "the pins are there again", func() bool {
		now := s.pins()
		missing = slices.DeleteFunc(slices.Clone(pins), func(pin string) bool { return slices.Contains(now, pin) })
		return len(missing) == 0
	})
}

// mapPins removes the pins of one map, or of all maps.
func (s *soak) mapPins() {
	all := s.pins()
	maps := slices.DeleteFunc(slices.Clone(all), func(pin string) bool { return strings.Contains(pin, "/links/") })
	if s.rnd.IntN(2) == 0 {
		maps = maps[s.rnd.IntN(len(maps)):][:1]
	}
	for _, pin := range maps {
		s.check(os.Remove(pin))
	}
	s.restored(all)
}

// directoryRenamed renames the directory of pins.
func (s *soak) directoryRenamed() {
	all := s.pins()
	s.check(os.Rename(s.d.Root, s.d.Root+"-away"))
	s.restored(all)
	if _, err := os.Stat(s.d.Root + "-away"); !errors.Is(err, fs.ErrNotExist) {
		s.t.Errorf("the directory still has its other name: %v", err)
	}
}

// directoryRemoved removes the directory with all pins. The daemon holds the pinned
// objects.
func (s *soak) directoryRemoved() {
	all := s.pins()
	s.check(os.RemoveAll(s.d.Root))
	s.restored(all)
}

// nothingKept removes the directory and kills the daemon before it can repair that: maps,
// programs and hooks end with it.
func (s *soak) nothingKept() {
	s.probes.down()
	s.check(errors.Join(s.d.Cmd.Signal(stopped), os.RemoveAll(s.d.Root)))
	s.d.Kill()
	s.pause(timeDown)
	s.up()
}

// unpin removes the pin of one hook, and waits until the daemon has restored it.
func (s *soak) unpin(packet bool) {
	pin := s.hook(packet)
	s.check(os.Remove(pin))
	s.restored([]string{pin})
}

// detach detaches one hook. The traffic shows when the daemon has repaired it: a request
// for metrics would make the daemon check its hooks.
func (s *soak) detach(packet bool) {
	rig.DetachLink(s.t, s.hook(packet))
	s.pause(timeDown)
	s.await("after a hook was detached")
}

// hook returns the pin of a random hook, of the packet path or of the socket path.
func (s *soak) hook(packet bool) string {
	s.t.Helper()
	all := slices.DeleteFunc(s.pins(), func(pin string) bool {
		return !strings.Contains(pin, "/links/") || strings.HasPrefix(filepath.Base(pin), "tcx") != packet
	})
	if len(all) == 0 {
		s.t.Fatalf("no such hook is pinned in %s", s.d.Root)
	}
	return all[s.rnd.IntN(len(all))]
}

// inEffect waits until the daemon reports that every hook is in effect.
func (s *soak) inEffect() {
	s.t.Helper()
	rig.Eventually(s.t, "all hooks are in effect", func() bool {
		hooks := 0
		for name, v := range s.d.Metrics() {
			if strings.HasPrefix(name, "shunt_in_effect{") {
				if hooks++; v != 1 {
					return false
				}
			}
		}
		return hooks > 0
	})
}
