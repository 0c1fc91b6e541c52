// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"

	"shunt/lb"
)

const (
	// quiet is how long a path must have been left alone before it is read: an
	// editor's or kubectl's writes come in bursts, and a file is not whole in
	// the midst of one. burst bounds the wait.
	quiet = 20 * time.Millisecond
	burst = 500 * time.Millisecond
	// pollInterval is how often files are looked at without being told: file
	// systems without inotify, and links into directories that are not watched.
	pollInterval = 5 * time.Second
)

// ManifestsOptions says what NewManifests reads and whom it tells.
type ManifestsOptions struct {
	// Path is a file, or a directory whose *.yaml, *.yml and *.json are read
	// (not those of its subdirectories, nor hidden ones).
	Path string
	// NodeName is this node's name: of the Nodes in the files only that one
	// counts, and where there is none the node is known by its name alone.
	NodeName string
	Sink     lb.Sink
	Log      *zap.Logger
}

// Manifests reads Services, EndpointSlices and this node's Node from files, and
// again whenever they change. A change of a file is a difference of objects:
//
//   - Documents stand for themselves. One that can't be used is logged with its
//     file, number, line and field, and the object that it was keeps its last
//     good version; the file's other documents apply.
//   - Where it can't be told which object a bad document was (it is not YAML, or
//     has no kind or name), every object of the file that is no longer seen
//     stays until the document is mended: it may be the one.
//   - A file that can't be read keeps its objects; one that is gone, or empty,
//     for missingGrace loses them.
//   - Of two objects of one name the first counts, by file name and place in the
//     file; the other takes over when the first is gone.
//   - Objects are completed and selected as the API server would for a proxy:
//     the namespace is "default" where none is written, and those with the label
//     of another proxy, and slices with that of a headless Service, are not seen.
type Manifests struct {
	ManifestsOptions
	converter Converter
	reports   reporter[fileKey]
	files     map[string]*file // by path

	applied map[objectKey]any // what the Sink was told: *lb.Service, *lb.EndpointSlice
	node    *lb.Node          // the same of SetNode
	usable  int               // services and slices that count
	synced  bool
	said    string        // the last error of the path as a whole
	poll    time.Duration // pollInterval
}

// NewManifests checks that the path can be read.
func NewManifests(o ManifestsOptions) (*Manifests, error) {
	if o.Sink == nil {
		return nil, errors.New("read manifests: no sink given")
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	m := &Manifests{ManifestsOptions: o, files: make(map[string]*file), poll: pollInterval}
	m.reports.log = o.Log
	m.reports.uidOf = func(lb.ServiceName) types.UID { return "" }
	if _, err := m.list(); err != nil {
		return nil, err
	}
	return m, nil
}

// list gives the paths to read, sorted. A path that is missing is an error that
// wraps fs.ErrNotExist.
func (m *Manifests) list() ([]string, error) {
	info, err := os.Stat(m.Path)
	if err != nil {
		return nil, fmt.Errorf("read --manifests %s: %w: give a file or a directory that is there", m.Path, err)
	}
	if !info.IsDir() {
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("read --manifests %s: is neither a file nor a directory", m.Path)
		}
		return []string{m.Path}, nil
	}
	entries, err := os.ReadDir(m.Path)
	if err != nil {
		return nil, fmt.Errorf("read --manifests %s: %w", m.Path, err)
	}
	var out []string
	for _, e := range entries {
		if name := e.Name(); name[0] != '.' && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			out = append(out, filepath.Join(m.Path, name))
		}
	}
	return out, nil // ReadDir sorts by name
}

// Run reads until ctx is done, and returns nil then. It returns an error only
// if the path can't be read at the start. SetSynced is called after the first
// look, or where nothing at all in the files could be used, after the first
// that finds something: bad files must not empty what an earlier process
// programmed.
func (m *Manifests) Run(ctx context.Context) error {
	if _, err := m.list(); err != nil {
		return err
	}
	var events chan fsnotify.Event
	var faults chan error
	watched, err := fsnotify.NewWatcher()
	if err == nil {
		defer watched.Close()
		events, faults = watched.Events, watched.Errors
	} else {
		m.Log.Warn("cannot watch files: manifests are looked at every "+m.poll.String(), zap.Error(err))
	}
	timer := time.NewTimer(0) // the first look
	defer timer.Stop()
	poll := time.NewTicker(m.poll)
	defer poll.Stop()
	var began time.Time // of a burst of events
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-events:
			if !m.concerns(ev.Name) {
				continue
			}
			if began.IsZero() {
				began = time.Now()
			}
			timer.Reset(max(0, min(quiet, burst-time.Since(began))))
			continue
		case <-faults: // events were lost: look for oneself
			timer.Reset(quiet)
			continue
		case <-timer.C:
		case <-poll.C:
			if !began.IsZero() {
				continue // in the midst of a burst: the timer is set
			}
		}
		began = time.Time{}
		m.follow(watched) // before the look: what changes after it is an event
		if m.look() {
			timer.Reset(missingGrace)
		}
	}
}

// concerns says whether an event of this path can mean a change.
func (m *Manifests) concerns(path string) bool {
	if _, ok := m.files[path]; ok {
		return true
	}
	if info, err := os.Stat(m.Path); err == nil && info.IsDir() {
		return true
	}
	base := filepath.Base(path)
	// ..data is what a ConfigMap volume swaps.
	return base == filepath.Base(m.Path) || base == "..data" || path == resolved(m.Path)
}

func resolved(path string) string {
	if r, err := filepath.EvalSymlinks(path); err == nil {
		return r
	}
	return path
}

// follow watches the directories whose changes matter: editors replace a file
// by another, which ends a watch of the file itself; and a file may be a link
// into another directory.
func (m *Manifests) follow(w *fsnotify.Watcher) {
	if w == nil {
		return
	}
	want := []string{filepath.Dir(m.Path)}
	paths, _ := m.list()
	if info, err := os.Stat(m.Path); err == nil && info.IsDir() {
		want = []string{filepath.Clean(m.Path)}
	}
	for _, p := range paths {
		want = append(want, filepath.Dir(resolved(p)))
	}
	slices.Sort(want)
	want = slices.Compact(want)
	for _, dir := range w.WatchList() {
		if !slices.Contains(want, dir) {
			_ = w.Remove(dir) // gone already, or not ours any more
		}
	}
	for _, dir := range want {
		if err := w.Add(dir); err != nil {
			m.Log.Debug("cannot watch a directory: it is looked at every "+m.poll.String(), zap.String("dir", dir), zap.Error(err))
		}
	}
}
