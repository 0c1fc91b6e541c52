// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// testSource returns a source whose binary for both architectures is this test: what is in
// an image does not depend on it.
func testSource(t *testing.T) *source {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &source{
		name: "registry.example.org/net/shunt", version: "v1.2.3", revision: "abc", url: "https://example.org/shunt",
		time:     time.Unix(1_700_000_000, 0).UTC(),
		files:    []file{{from: "../../LICENSE", to: "usr/share/doc/shunt/LICENSE", mode: 0o644}},
		binaries: []binary{{"amd64", self}, {"arm64", self}},
		level:    gzip.BestSpeed,
	}
}

func written(t *testing.T, s *source) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	if err := s.write(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sums returns a checksum of each file in dir, by name.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		sum := sha256.Sum256(content)
		all[strings.TrimPrefix(path, dir)] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestReproducible: images of equal sources are equal in every file, whenever they are made
// and whatever the time zone, the umask and the files' times are.
func TestReproducible(t *testing.T) {
	s := testSource(t)
	first := sums(t, written(t, s))
	copied := filepath.Join(t.TempDir(), "other-name")
	content, err := os.ReadFile(s.binaries[0].path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, content, 0o700); err != nil {
		t.Fatal(err)
	}
	s.binaries[0].path = copied
	s.time = s.time.In(time.FixedZone("other", 3600)).UTC()
	if second := sums(t, written(t, s)); !reflect.DeepEqual(first, second) {
		t.Errorf("two images differ:\n%v\n%v", first, second)
	}
	s.revision = "def"
	if third := sums(t, written(t, s)); third["/digest"] == first["/digest"] {
		t.Error("another revision has the same digest")
	}
}

// TestImage: the layout is valid, has both architectures with labels, and each layer has the
// binary and the licences, which belong to root.
func TestImage(t *testing.T) {
	s := testSource(t)
	dir := written(t, s)
	index := indexOf(t, dir)
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 2 || manifest.Annotations["org.opencontainers.image.version"] != "v1.2.3" {
		t.Fatalf("index has %+v", manifest)
	}
	for i, want := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}} {
		m := manifest.Manifests[i]
		if m.Platform == nil || !m.Platform.Equals(want) {
			t.Errorf("manifest %d is for %v, want %v", i, m.Platform, want)
		}
		img, err := index.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		wantImage(t, s, img)
		docker, err := tarball.ImageFromPath(filepath.Join(dir, "shunt-linux-"+want.Architecture+".tar"), nil)
		if err != nil {
			t.Fatal(err)
		}
		wantSameConfig(t, docker, img)
	}
	loaded, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(filepath.Join(dir, "shunt-linux-amd64.tar")) })
	if err != nil || len(loaded) != 1 || !reflect.DeepEqual(loaded[0].RepoTags, []string{"registry.example.org/net/shunt:v1.2.3"}) {
		t.Errorf("the archive for docker has %+v, %v", loaded, err)
	}
}

func indexOf(t *testing.T, dir string) v1.ImageIndex {
	t.Helper()
	all, err := layout.ImageIndexFromPath(filepath.Join(dir, "oci"))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := all.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	index, err := all.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func wantSameConfig(t *testing.T, a, b v1.Image) {
	t.Helper()
	one, err1 := a.ConfigName()
	other, err2 := b.ConfigName()
	if err := errors.Join(err1, err2); err != nil || one != other {
		t.Errorf("configurations %v and %v, %v", one, other, err)
	}
}

func wantImage(t *testing.T, s *source, img v1.Image) {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := config.Config
	if !reflect.DeepEqual(c.Labels, s.labels()) || c.Labels["org.opencontainers.image.revision"] != "abc" ||
		c.Labels["org.opencontainers.image.created"] != "2023-11-14T22:13:20Z" || c.Labels["org.opencontainers.image.source"] == "" {
		t.Errorf("labels %v", c.Labels)
	}
	if !reflect.DeepEqual(c.Entrypoint, []string{"shunt"}) || !reflect.DeepEqual(c.Env, []string{"PATH=/" + filepath.Dir(binaryPath)}) {
		t.Errorf("entry point %q, environment %q", c.Entrypoint, c.Env)
	}
	content, err := onlyLayer(t, img).Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	wantMembers(t, content, s.time)
}

// onlyLayer returns the layer of an image that must have one.
func onlyLayer(t *testing.T, img v1.Image) v1.Layer {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	return layers[0]
}

// wantMembers checks the members of a layer: each directory comes before what is in it.
func wantMembers(t *testing.T, layer io.Reader, when time.Time) {
	t.Helper()
	modes := map[string]int64{}
	for r := tar.NewReader(layer); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		modes[h.Name] = h.Mode
		parent := filepath.Dir(strings.TrimSuffix(h.Name, "/")) + "/"
		if _, made := modes[parent]; !made && parent != "./" {
			t.Errorf("%s comes before its directory", h.Name)
		}
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(when) {
			t.Errorf("%s belongs to %d:%d and is of %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
	}
	want := map[string]int64{"usr/": 0o755, "usr/local/": 0o755, "usr/local/bin/": 0o755, "usr/local/bin/shunt": 0o755,
		"usr/share/": 0o755, "usr/share/doc/": 0o755, "usr/share/doc/shunt/": 0o755, "usr/share/doc/shunt/LICENSE": 0o644}
	if !reflect.DeepEqual(modes, want) {
		t.Errorf("the layer has %v, want %v", modes, want)
	}
}

// TestSBOM: the list has every module that is in the binary, and Go's library.
func TestSBOM(t *testing.T) {
	s := testSource(t)
	dir := written(t, s)
	f, err := os.Open(filepath.Join(dir, "shunt-linux-amd64.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(f, cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(s.binaries[0].path)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range *bom.Components {
		got[c.Name] = c.Version
	}
	want := map[string]string{"std": strings.TrimPrefix(runtime.Version(), "go")}
	for _, m := range info.Deps {
		want[m.Path] = m.Version
	}
	if len(want) < 3 || !reflect.DeepEqual(got, want) {
		t.Errorf("components %v, want %v", got, want)
	}
	if d := *bom.Dependencies; len(*d[0].Dependencies) != len(want) || bom.Metadata.Component.Version != "v1.2.3" {
		t.Errorf("%d dependencies of %+v", len(d), bom.Metadata.Component)
	}
	notGo := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(notGo, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.binaries[0].path = notGo
	if err := s.write(filepath.Join(t.TempDir(), "image")); err == nil || !strings.Contains(err.Error(), notGo) {
		t.Errorf("an image of a script: %v", err)
	}
}

// TestPush: a registry has the images by tag afterwards, and the SBOM of each beside it.
func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	dir := written(t, testSource(t))
	reference := strings.TrimPrefix(server.URL, "http://") + "/net/shunt:v1.2.3"
	pushed, err := push(t.Context(), dir, reference)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := os.ReadFile(filepath.Join(dir, "digest"))
	if err != nil || !strings.HasSuffix(pushed, "@"+strings.TrimSpace(string(digest))) {
		t.Errorf("pushed %s, want the digest %s, %v", pushed, digest, err)
	}
	tag, err := name.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range manifest.Manifests {
		wantSBOM(t, tag.Context().Digest(m.Digest.String()), filepath.Join(dir, []string{"shunt-linux-amd64", "shunt-linux-arm64"}[i]+".cdx.json"))
	}
	if _, err := push(t.Context(), t.TempDir(), reference); err == nil {
		t.Error("an empty directory was pushed")
	}
}

func wantSBOM(t *testing.T, of name.Digest, file string) {
	t.Helper()
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	referrers, err := remote.Referrers(of)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := referrers.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 || manifest.Manifests[0].ArtifactType != string(sbomType) {
		t.Fatalf("beside %s is %+v, %v", of, manifest, err)
	}
	artifact, err := remote.Image(of.Context().Digest(manifest.Manifests[0].Digest.String()))
	if err != nil {
		t.Fatal(err)
	}
	content, err := onlyLayer(t, artifact).Compressed()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(content)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not the content beside %s: %v", file, of, err)
	}
}

// TestCommandLine: what is wrong is refused.
func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{nil, {"push", "x"}, {"build"}, {"build", "-out", t.TempDir(), "amd64"}, {"build", "-file", "x"}} {
		if err := run(t.Context(), args); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}
