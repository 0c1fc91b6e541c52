// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	stdmaps "maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"
)

const (
	// missingGrace is how long a file must be missing or empty before its objects are
	// removed: some editors remove or truncate a file before they write it.
	missingGrace = 100 * time.Millisecond
	// racy is the resolution of the coarsest file system's clock. Within this time after a
	// modification, the file can change again without a change of its modification time.
	racy = 2 * time.Second
)

// file is the state of one file: the last content that could be read, and its objects.
type file struct {
	is      identity
	read    time.Time
	sum     [sha256.Size]byte
	docs    map[[sha256.Size]byte]*parsed // by the sum of a document's text
	objects []*object                     // in the order of the file
	missing time.Time                     // when the file was first missing or empty; zero: it is not
	said    string                        // the last error of reading it
}

// identity distinguishes the states of a file without reading it.
type identity struct {
	device, inode    uint64
	size             int64
	modified, status int64 // nanoseconds since 1970
}

// look reads the files that have changed since the last call, and passes the difference
// to the Sink. It reports whether it must be called again after missingGrace.
func (m *Manifests) look() (again bool) {
	paths, err := m.list()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.sayOnce("cannot read manifests: what was read stays", err)
		return false
	}
	changed, bad := m.applied == nil, false // the first call applies an empty result too
	for _, p := range paths {
		c, a := m.readFile(p)
		changed, again = changed || c, again || a
	}
	for p, f := range m.files {
		if !slices.Contains(paths, p) && f.gone() {
			delete(m.files, p)
			changed = true
		} else if !f.missing.IsZero() {
			again = true
		}
		bad = bad || f.failed()
	}
	if !again { // else the path may be missing only for a moment
		m.sayOnce("the manifests are gone, and so is what they said", err)
	}
	if changed {
		m.apply()
	}
	switch {
	case m.synced:
	case !bad || m.usable > 0:
		m.synced = true
		m.Sink.SetSynced()
	case changed:
		m.Log.Error("nothing in the manifests can be used: nothing is programmed until something can", zap.String("path", m.Path))
	}
	return again
}

// sayOnce logs an error of the path as a whole, unless it is equal to the last one.
func (m *Manifests) sayOnce(what string, err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	if m.said != now && err != nil {
		m.Log.Error(what, zap.Error(err))
	}
	m.said = now
}

// gone reports whether the objects of a missing or empty file are removed: after
// missingGrace, or at once if the file had no objects. The first call starts missingGrace.
func (f *file) gone() bool {
	if f.missing.IsZero() {
		f.missing = time.Now()
	}
	return time.Since(f.missing) >= missingGrace || len(f.objects) == 0
}

// failed reports whether anything in the file could not be used.
func (f *file) failed() bool {
	if f.said != "" {
		return true
	}
	for _, p := range f.docs {
		if len(p.failures) > 0 {
			return true
		}
	}
	return false
}

// readFile reads one file if it has changed. It reports whether the file's objects may
// have changed, and whether it must be read again soon.
func (m *Manifests) readFile(path string) (changed, again bool) {
	f := m.files[path]
	if f == nil {
		f = &file{}
		m.files[path] = f
	}
	data, fresh, err := f.load(path)
	if errors.Is(err, errWritten) {
		return false, true // the next look reads it
	}
	if errors.Is(err, fs.ErrNotExist) { // removed since it was listed, or a dangling link
		if !f.gone() {
			return false, true
		}
		changed = len(f.objects) > 0
		*f = file{}
		return changed, false
	}
	if err != nil {
		if f.said != err.Error() {
			f.said = err.Error()
			m.Log.Error("cannot read a manifest file: its objects stay as they are", zap.String("file", path), zap.Error(err))
		}
		return false, false
	}
	f.said = ""
	if !fresh {
		f.missing = time.Time{}
		return false, false
	}
	if len(bytes.TrimSpace(data)) == 0 && !f.gone() {
		return false, true
	}
	f.missing = time.Time{}
	f.sum = sha256.Sum256(data)
	m.readDocuments(path, f, data)
	return true, false
}

// errWritten is the error for a file that changed while it was read.
var errWritten = errors.New("is being written")

// load returns the content of the file. fresh reports whether the content differs from the
// content that was read last; data is nil if the file's identity is unchanged.
func (f *file) load(path string) (data []byte, fresh bool, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, false, err
	}
	if !info.Mode().IsRegular() {
		return nil, false, errors.New("is not a regular file")
	}
	is, now := identify(info), time.Now()
	settled := f.read.Sub(info.ModTime()) > racy
	if !f.read.IsZero() && f.is == is && settled && f.missing.IsZero() {
		return nil, false, nil
	}
	if data, err = os.ReadFile(path); err != nil {
		return nil, false, err
	}
	if after, err := os.Stat(path); err != nil || identify(after) != is {
		return nil, false, errWritten
	}
	same := !f.read.IsZero() && sha256.Sum256(data) == f.sum
	f.is, f.read = is, now
	return data, !same, nil
}

func identify(info fs.FileInfo) identity {
	is := identity{size: info.Size(), modified: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		is.device, is.inode, is.status = uint64(st.Dev), st.Ino, st.Ctim.Nano()
	}
	return is
}

// readDocuments replaces the objects of a file by those of its new content. Unchanged
// documents are not parsed again, and their failures are not logged again.
func (m *Manifests) readDocuments(path string, f *file, data []byte) {
	docs := make(map[[sha256.Size]byte]*parsed)
	var objects []*object
	unknown := false // a document that can't be parsed may contain any object
	kept := make(map[objectKey]bool)
	for _, d := range splitDocuments(data) {
		sum := sha256.Sum256(d.text)
		p, old := f.docs[sum]
		if !old {
			p = m.converter.parse(d)
			m.complain(path, d, p.failures)
		}
		docs[sum] = p
		objects = append(objects, p.objects...)
		for _, fail := range p.failures {
			unknown = unknown || fail.key == objectKey{}
			kept[fail.key] = true
		}
	}
	seen := make(map[objectKey]bool, len(objects))
	for _, o := range objects {
		seen[o.key] = true
	}
	for _, o := range f.objects {
		if !seen[o.key] && (unknown || kept[o.key]) {
			objects = append(objects, o)
		}
	}
	f.docs, f.objects = docs, objects
}

func (m *Manifests) complain(path string, d document, failures []failure) {
	for i, fail := range failures {
		fields := []zap.Field{
			zap.String("file", path), zap.Int("document", d.index), zap.Int("line", d.line), zap.Error(fail.err),
		}
		what := "a document of a manifest file cannot be used; what it was before stays"
		if fail.key != (objectKey{}) {
			what = fail.key.String() + " cannot be used; its last good version stays"
		}
		if i == mostSaid {
			m.Log.Error("and more of the like", zap.String("file", path), zap.Int("document", d.index), zap.Int("errors", len(failures)-i))
			return
		}
		m.Log.Error(filepath.Base(path)+": "+what, fields...)
	}
}

// sortedFiles returns the paths of the files, sorted: the order of precedence.
func (m *Manifests) sortedFiles() []string { return slices.Sorted(stdmaps.Keys(m.files)) }
