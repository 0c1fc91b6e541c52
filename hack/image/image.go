// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// binaryPath is where the binary is in the image. PATH names its directory.
const binaryPath = "usr/local/bin/shunt"

// source is what images are made of. Equal sources make equal images, byte by byte.
type source struct {
	name, version, revision, url string
	// time is the only time in the image.
	time     time.Time
	files    []file
	binaries []binary
	// level is the layers' level of compression.
	level int
}

type binary struct{ arch, path string }

func (b binary) platform() *v1.Platform {
	p := &v1.Platform{OS: "linux", Architecture: b.arch}
	if b.arch == "arm64" {
		p.Variant = "v8"
	}
	return p
}

type file struct {
	from, to string
	mode     int64
}

// labels returns what the image says about itself, as labels and as annotations.
func (s *source) labels() map[string]string {
	l := map[string]string{
		"org.opencontainers.image.title":       "shunt",
		"org.opencontainers.image.description": "A kube-proxy replacement, and nothing else",
		"org.opencontainers.image.licenses":    "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)",
		"org.opencontainers.image.version":     s.version,
		"org.opencontainers.image.created":     s.time.Format(time.RFC3339),
	}
	if s.revision != "" {
		l["org.opencontainers.image.revision"] = s.revision
	}
	if s.url != "" {
		l["org.opencontainers.image.source"] = s.url
	}
	return l
}

// image returns the image of one architecture: one layer, without a base.
func (s *source) image(b binary) (v1.Image, error) {
	archive, err := s.archive(b)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil },
		tarball.WithCompressionLevel(s.level), tarball.WithCompressedCaching,
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: s.time}, CreatedBy: "hack/image"},
	})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	p := b.platform()
	config.OS, config.Architecture, config.Variant, config.Created = p.OS, p.Architecture, p.Variant, v1.Time{Time: s.time}
	config.Config = v1.Config{
		Entrypoint: []string{"shunt"},
		// For `kubectl exec`: runtimes differ in what they set where an image has no PATH.
		Env:    []string{"PATH=/usr/local/bin"},
		Labels: s.labels(),
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	return mutate.Annotations(img, s.labels()).(v1.Image), nil
}

// archive returns the layer: the binary, the other files, and directories for both.
func (s *source) archive(b binary) ([]byte, error) {
	files := append([]file{{from: b.path, to: binaryPath, mode: 0o755}}, s.files...)
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.to, b.to) })
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{".": true}
	for _, f := range files {
		content, err := os.ReadFile(f.from)
		if err != nil {
			return nil, err
		}
		if err := s.directories(w, made, path.Dir(f.to)); err != nil {
			return nil, err
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.to, Mode: f.mode, Size: int64(len(content)), ModTime: s.time}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("%s: %w", f.to, err)
		}
		if _, err := w.Write(content); err != nil {
			return nil, fmt.Errorf("%s: %w", f.to, err)
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

// directories writes dir and everything above it, where made does not have it.
func (s *source) directories(w *tar.Writer, made map[string]bool, dir string) error {
	if made[dir] {
		return nil
	}
	if err := s.directories(w, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: s.time})
}
