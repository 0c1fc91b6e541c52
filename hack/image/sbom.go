// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const sbomType = types.MediaType("application/vnd.cyclonedx+json")

// sbom returns the components of a binary in CycloneDX's JSON: the Go modules that the
// linker recorded in it, and Go's own library. Nothing else is in the image.
func (s *source) sbom(b binary) ([]byte, error) {
	info, err := buildinfo.ReadFile(b.path)
	if err != nil {
		return nil, fmt.Errorf("read the modules of %s: %w", b.path, err)
	}
	sum, err := sha256Of(b.path)
	if err != nil {
		return nil, err
	}
	self := cdx.Component{
		BOMRef: "pkg:generic/shunt@" + s.version, Type: cdx.ComponentTypeApplication, Name: "shunt",
		Version: s.version, PackageURL: "pkg:generic/shunt@" + s.version + "?arch=" + b.arch,
		Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum)}},
	}
	components := []cdx.Component{module("std", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, m := range info.Deps {
		components = append(components, moduleOf(m))
	}
	refs := make([]string, 0, len(components))
	for _, c := range components {
		refs = append(refs, c.BOMRef)
	}
	bom := cdx.NewBOM()
	// A name that is the same for the same binary: a random one would make two builds differ.
	bom.SerialNumber = fmt.Sprintf("urn:uuid:%x-%x-5%03x-8%03x-%x", sum[0:4], sum[4:6], uint(sum[6])<<4, uint(sum[8])<<4, sum[10:16])
	bom.Metadata = &cdx.Metadata{Timestamp: s.time.Format(time.RFC3339), Component: &self}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: self.BOMRef, Dependencies: &refs}}
	var out bytes.Buffer
	err = cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
	return out.Bytes(), err
}

func moduleOf(m *debug.Module) cdx.Component {
	if m.Replace != nil {
		m = m.Replace
	}
	return module(m.Path, m.Version)
}

func module(path, version string) cdx.Component {
	purl := "pkg:golang/" + path + "@" + version
	return cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: purl}
}

// sbomImage returns the artifact by which a registry has the SBOM beside its image.
func (s *source) sbomImage(sbom []byte, of v1.Descriptor) (v1.Image, error) {
	artifact := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), sbomType)
	artifact, err := mutate.AppendLayers(artifact, static.NewLayer(sbom, sbomType))
	if err != nil {
		return nil, err
	}
	artifact = mutate.Annotations(artifact, map[string]string{
		"org.opencontainers.image.created": s.time.Format(time.RFC3339),
	}).(v1.Image)
	of.Platform = nil
	return mutate.Subject(artifact, of).(v1.Image), nil
}

func sha256Of(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
