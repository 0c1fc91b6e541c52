// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"shunt/lb"
)

// never is the poll interval of tests in which inotify must report every change.
const never = 24 * time.Hour

// runManifests runs a watcher with that poll interval until the test ends.
func runManifests(t *testing.T, path string, poll time.Duration) *sink {
	t.Helper()
	s := newSink(t)
	m, err := NewManifests(ManifestsOptions{Path: path, Sink: s})
	must(t, err)
	m.poll = poll
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(deadline):
			t.Error("Run does not end")
		}
	})
	return s
}

// TestManifestsWatch: a change is seen at once, by whatever method a program changes a
// file.
func TestManifestsWatch(t *testing.T) {
	ip := 0
	next := func() string { // another version of one service
		ip++
		return serviceDoc("web", fmt.Sprintf("10.96.1.%d", ip))
	}
	replace := func(t *testing.T, path, content string) {
		must(t, os.Rename(write(t, path+".new~", content), path))
	}
	for _, c := range []struct {
		name string
		// setup makes a file or directory and returns its path; change changes it.
		setup  func(t *testing.T, dir string) (path string)
		change func(t *testing.T, dir string)
	}{
		{
			name:   "a file written in place",
			setup:  func(t *testing.T, dir string) string { return write(t, filepath.Join(dir, "a.yaml"), next()) },
			change: func(t *testing.T, dir string) { write(t, filepath.Join(dir, "a.yaml"), next()) },
		},
		{
			name:   "a file replaced by rename",
			setup:  func(t *testing.T, dir string) string { return write(t, filepath.Join(dir, "a.yaml"), next()) },
			change: func(t *testing.T, dir string) { replace(t, filepath.Join(dir, "a.yaml"), next()) },
		},
		{
			name:  "a file removed and made again",
			setup: func(t *testing.T, dir string) string { return write(t, filepath.Join(dir, "a.yaml"), next()) },
			change: func(t *testing.T, dir string) {
				must(t, os.Remove(filepath.Join(dir, "a.yaml")))
				write(t, filepath.Join(dir, "a.yaml"), next())
			},
		},
		{
			name:   "a directory's file replaced by rename",
			setup:  func(t *testing.T, dir string) string { write(t, filepath.Join(dir, "a.yaml"), next()); return dir },
			change: func(t *testing.T, dir string) { replace(t, filepath.Join(dir, "a.yaml"), next()) },
		},
		{
			name:   "a ConfigMap volume",
			setup:  func(t *testing.T, dir string) string { configMap(t, dir, "v1", next()); return dir },
			change: func(t *testing.T, dir string) { configMap(t, dir, fmt.Sprintf("v%d", ip), next()) },
		},
		{
			name: "a file of a ConfigMap volume",
			setup: func(t *testing.T, dir string) string {
				configMap(t, dir, "v1", next())
				return filepath.Join(dir, "a.yaml")
			},
			change: func(t *testing.T, dir string) { configMap(t, dir, fmt.Sprintf("v%d", ip), next()) },
		},
		{
			name: "a link into another directory",
			setup: func(t *testing.T, dir string) string {
				write(t, filepath.Join(dir, "far", "real.yaml"), next())
				must(t, os.MkdirAll(filepath.Join(dir, "near"), 0o755))
				must(t, os.Symlink("../far/real.yaml", filepath.Join(dir, "near", "a.yaml")))
				return filepath.Join(dir, "near")
			},
			change: func(t *testing.T, dir string) { replace(t, filepath.Join(dir, "far", "real.yaml"), next()) },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := runManifests(t, c.setup(t, dir), never)
			s.next("set service default/web", "synced")
			for range 3 {
				c.change(t, dir)
				s.next("set service default/web")
			}
		})
	}
}

// configMap writes a version of a volume as the kubelet does: to a new directory, to which
// one rename then points the link ..data.
func configMap(t *testing.T, dir, version, content string) {
	t.Helper()
	write(t, filepath.Join(dir, ".."+version, "a.yaml"), content)
	must(t, os.Symlink(".."+version, filepath.Join(dir, "..data_tmp")))
	must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	if _, err := os.Lstat(filepath.Join(dir, "a.yaml")); err != nil {
		must(t, os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")))
	}
}

// TestManifestsWatchFiles: files are created and removed in a directory.
func TestManifestsWatchFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	must(t, os.Mkdir(dir, 0o755))
	s := runManifests(t, dir, never)
	s.next("synced")
	write(t, filepath.Join(dir, "a.yaml"), serviceDoc("web", "10.96.0.1"))
	s.next("set service default/web")
	write(t, filepath.Join(dir, "b.yaml"), serviceDoc("db", "10.96.0.2"))
	s.next("set service default/db")
	must(t, os.Remove(filepath.Join(dir, "a.yaml")))
	s.next("delete service default/web")
}

// TestManifestsWatchDirectory: the whole directory is removed and created again. The poll
// finds it at the latest.
func TestManifestsWatchDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	write(t, filepath.Join(dir, "a.yaml"), serviceDoc("web", "10.96.0.1"))
	s := runManifests(t, dir, 50*time.Millisecond)
	s.next("set service default/web", "synced")
	must(t, os.RemoveAll(dir))
	s.next("delete service default/web")
	write(t, filepath.Join(dir, "a.yaml"), serviceDoc("web", "10.96.0.3"))
	s.next("set service default/web")
}

// TestManifestsHalfWritten: a file that is truncated and written in parts is not read
// before it is complete, as long as the parts follow each other quickly.
func TestManifestsHalfWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	web, db := serviceDoc("web", "10.96.0.1"), serviceDoc("db", "10.96.0.2")
	write(t, path, docs(web, db))
	s := runManifests(t, path, never)
	s.next("set service default/web", "set service default/db", "synced")
	name := lb.ServiceName{Namespace: "default", Name: "web"}
	quick := 0
	for i := range 50 { // on a busy machine, a part may be late
		start := time.Now()
		f, err := os.Create(path) // truncates
		must(t, err)
		ip := fmt.Sprintf("10.96.2.%d", i+1)
		for _, part := range []string{"# a new version\n", serviceDoc("web", ip), "---\n", db} {
			_, err := f.WriteString(part)
			must(t, err)
		}
		must(t, f.Close())
		inTime := time.Since(start) < quiet/2
		eventually(t, "the new version", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			m := s.services[name]
			return m != nil && m.ClusterIPs[0].String() == ip && len(s.services) == 2
		})
		if calls := s.take(); inTime {
			s.same(calls, []string{"set service default/web"})
			if quick++; quick == 5 {
				return
			}
		}
	}
	t.Skip("the machine is too busy to write a file in time")
}

// TestManifestLinkLeadsNowhere: a link whose target is removed loses its objects, like a
// file that is removed, and does not cause endless looks.
func TestManifestLinkLeadsNowhere(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	target := write(t, filepath.Join(elsewhere, "target"), serviceDoc("web", "10.96.1.1"))
	must(t, os.Symlink(target, filepath.Join(dir, "link.yaml")))
	must(t, os.Symlink(filepath.Join(elsewhere, "never"), filepath.Join(dir, "never.yaml")))
	s := newSink(t)
	m, err := NewManifests(ManifestsOptions{Path: dir, Sink: s})
	must(t, err)
	if m.look() {
		t.Error("a link that never led anywhere asks for another look")
	}
	s.next("set service default/web", "synced")
	must(t, os.Remove(target))
	looks := 0
	for m.look() {
		if looks++; looks > 20 {
			t.Fatal("the link is looked at for ever")
		}
		time.Sleep(missingGrace / 2) // Run would wait missingGrace
	}
	s.next("delete service default/web")
	if looks == 0 {
		t.Error("the objects were taken away before missingGrace had passed")
	}
	write(t, target, serviceDoc("web", "10.96.1.2"))
	m.look()
	s.next("set service default/web")
}
