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
	// quiet is how long a path must be unchanged before it is read: editors and kubectl
	// write in bursts, and during a burst a file is incomplete. burst bounds the total wait.
	quiet = 20 * time.Millisecond
	burst = 500 * time.Millisecond
	// pollInterval is the interval at which files are checked without an event, for file
	// systems without inotify and for links into directories that are not watched.
	pollInterval = 5 * time.Second
)

// ManifestsOptions are the options of NewManifests.
type ManifestsOptions struct {
	// Path is a file, or a directory whose *.yaml, *.yml and *.json files are read,
	// except hidden files and files in subdirectories.
	Path string
	// NodeName is this node's name. Of the Nodes in the files only the Node of that name
	// is used; if there is none, the Sink gets a Node that has only this name. If
	// NodeName is empty, the first Node is used.
	NodeName string
	Sink     lb.Sink
	Log      *zap.Logger
}

// Manifests reads Services, EndpointSlices and this node's Node from files, and
// again whenever they change. Only the objects that differ are passed to the Sink:
//
//   - Documents are independent. A document that can't be used is logged with its
//     file, number, line and field. The last valid version of its object remains
//     applied, and the file's other documents are applied.
//   - A document may be so malformed that its object is unknown (it is not YAML, or
//     has no kind or name). Until it is repaired, every earlier object that is now
//     missing from the file remains applied: the document may contain that object.
//   - The objects of a file that can't be read remain applied. The objects of a file
//     that is missing or empty for missingGrace are removed.
//   - Of two objects with the same name the first is applied, by file name and
//     position in the file. The second is applied when the first is removed.
//   - Defaults and selection are those of the API server for a proxy. The namespace
//     is "default" where it is missing. Slices with the label of another proxy or of
//     a headless Service are left out. Of a Service with the label of another proxy
//     only the cluster IPs are used.
type Manifests struct {
	ManifestsOptions
	converter Converter
	reports   reporter[fileKey]
	files     map[string]*file // by path

	applied map[objectKey]any // the objects set in the Sink: *lb.Service, *lb.EndpointSlice
	node    *lb.Node          // the argument of the last call of SetNode
	usable  int               // number of Services and EndpointSlices that are applied
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

// list returns the paths to read, sorted. Its error wraps fs.ErrNotExist if the path is
// missing.
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

// Run reads the files until ctx is done and then returns nil. It returns an error only if
// the path can't be read at the start. It calls SetSynced after it has read all files once.
// If they contain errors and no valid object, it calls SetSynced later, when they contain a
// valid object or no error: malformed files must not remove what an earlier process programmed.
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

// concerns reports whether an event of this path can mean a change of a manifest.
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

// follow watches the directories of the files, and those that links resolve to. It does not
// watch the files themselves: an editor replaces a file by another, which ends a watch of
// the file.
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
