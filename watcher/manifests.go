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
	// quiet is how long a path must have been unchanged before it is read: editors
	// and kubectl write in bursts, and a file is incomplete during one. burst bounds
	// the wait.
	quiet = 20 * time.Millisecond
	burst = 500 * time.Millisecond
	// pollInterval is how often files are looked at without an event, for file systems
	// without inotify and for links into directories that are not watched.
	pollInterval = 5 * time.Second
)

// ManifestsOptions are the options of NewManifests.
type ManifestsOptions struct {
	// Path is a file, or a directory whose *.yaml, *.yml and *.json are read
	// (not those of its subdirectories, nor hidden ones).
	Path string
	// NodeName is this node's name. Of the Nodes in the files only the one of that
	// name counts; where there is none, the Node has only its name. If NodeName is
	// empty, the first Node counts.
	NodeName string
	Sink     lb.Sink
	Log      *zap.Logger
}

// Manifests reads Services, EndpointSlices and this node's Node from files, and
// again whenever they change. Only the objects that differ are passed to the Sink:
//
//   - Documents are independent. One that can't be used is logged with its file,
//     number, line and field. Its object keeps its last good version, and the
//     file's other documents apply.
//   - Where it is not known which object a bad document holds (it is not YAML, or
//     has no kind or name), every object that is missing from the file stays until
//     the document is repaired: the document may hold it.
//   - A file that can't be read keeps its objects. One that is gone, or empty, for
//     missingGrace loses them.
//   - Of two objects with the same name the first counts, by file name and position
//     in the file. The other one counts when the first is gone.
//   - Defaults and selection are those of the API server for a proxy. The namespace
//     is "default" where it is missing. Slices with the label of another proxy or of
//     a headless Service are left out. Of a Service with the label of another proxy
//     only the cluster IPs are used.
type Manifests struct {
	ManifestsOptions
	converter Converter
	reports   reporter[fileKey]
	files     map[string]*file // by path

	applied map[objectKey]any // what the Sink has: *lb.Service, *lb.EndpointSlice
	node    *lb.Node          // what SetNode was called with last
	usable  int               // services and slices that count
	synced  bool
	said    string        // the last error of the path as a whole
	poll    time.Duration // pollInterval
}

// NewManifests checks the options, and that the path can be read.
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

// list returns the paths to read, sorted. Its error wraps fs.ErrNotExist where the path
// is missing.
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

// Run reads the files until ctx is done, and returns nil then. It returns an error only
// if the path can't be read at the start. It calls SetSynced after the first look. If
// that look finds bad files and no object, it waits for one that finds an object: bad
// files must not empty what an earlier process programmed.
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
		case <-faults: // events were lost: read the files
			timer.Reset(quiet)
			continue
		case <-timer.C:
		case <-poll.C:
			if !began.IsZero() {
				continue // during a burst: the timer is set
			}
		}
		began = time.Time{}
		m.follow(watched) // before the look, so that each later change is an event
		if m.look() {
			timer.Reset(missingGrace)
		}
	}
}

// concerns reports whether an event of this path can mean a change.
func (m *Manifests) concerns(path string) bool {
	if _, ok := m.files[path]; ok {
		return true
	}
	if info, err := os.Stat(m.Path); err == nil && info.IsDir() {
		return true
	}
	base := filepath.Base(path)
	// A ConfigMap volume replaces its link ..data.
	return base == filepath.Base(m.Path) || base == "..data" || path == resolved(m.Path)
}

func resolved(path string) string {
	if r, err := filepath.EvalSymlinks(path); err == nil {
		return r
	}
	return path
}

// follow watches the directories whose changes matter. It does not watch the files: an
// editor replaces a file by another, which ends a watch of the file. And a file may be a
// link into another directory.
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
			_ = w.Remove(dir) // an error means that the watch has ended already
		}
	}
	for _, dir := range want {
		if err := w.Add(dir); err != nil {
			m.Log.Debug("cannot watch a directory: it is looked at every "+m.poll.String(), zap.String("dir", dir), zap.Error(err))
		}
	}
}
