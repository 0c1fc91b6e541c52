// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// refName is the annotation by which tools find an image in an OCI layout.
const refName = "org.opencontainers.image.ref.name"

// write makes dir anew, with:
//
//	oci/                          OCI layout: one index of all architectures, and the SBOMs
//	shunt-linux-ARCH.tar          for `docker load`, `ctr images import`, `kind load image-archive`
//	shunt-linux-ARCH.cdx.json     SBOM
//	digest                        digest of the index
func (s *source) write(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tag, err := name.NewTag(s.name + ":" + s.version)
	if err != nil {
		return err
	}
	oci, err := layout.Write(filepath.Join(dir, "oci"), empty.Index)
	if err != nil {
		return err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var sboms []v1.Image
	for _, b := range s.binaries {
		img, err := s.image(b)
		if err != nil {
			return err
		}
		sbom, err := s.sbom(b)
		if err != nil {
			return err
		}
		file := filepath.Join(dir, "shunt-linux-"+b.arch)
		if err := os.WriteFile(file+".cdx.json", sbom, 0o644); err != nil {
			return err
		}
		if err := tarball.WriteToFile(file+".tar", tag, img); err != nil {
			return fmt.Errorf("write %s.tar: %w", file, err)
		}
		desc, err := partial.Descriptor(img)
		if err != nil {
			return err
		}
		artifact, err := s.sbomImage(sbom, *desc)
		if err != nil {
			return err
		}
		sboms = append(sboms, artifact)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: b.platform()}})
	}
	index = mutate.Annotations(index, s.labels()).(v1.ImageIndex)
	if err := oci.AppendIndex(index, layout.WithAnnotations(map[string]string{refName: s.version})); err != nil {
		return err
	}
	for _, artifact := range sboms {
		if err := oci.AppendImage(artifact); err != nil {
			return err
		}
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "digest"), []byte(digest.String()+"\n"), 0o644)
}

// push sends the images and SBOMs of dir, which write made, to a registry, and returns the
// reference by digest. Credentials are those of `docker login`.
func push(ctx context.Context, dir, reference string) (string, error) {
	tag, err := name.ParseReference(reference)
	if err != nil {
		return "", err
	}
	all, err := layout.ImageIndexFromPath(filepath.Join(dir, "oci"))
	if err != nil {
		return "", fmt.Errorf("%s has no images of `image build`: %w", dir, err)
	}
	manifest, err := all.IndexManifest()
	if err != nil {
		return "", err
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	digest := ""
	for _, m := range manifest.Manifests {
		if m.MediaType.IsIndex() {
			index, err := all.ImageIndex(m.Digest)
			if err != nil {
				return "", err
			}
			if err := remote.WriteIndex(tag, index, options...); err != nil {
				return "", fmt.Errorf("push %s: %w", tag, err)
			}
			digest = m.Digest.String()
			continue
		}
		artifact, err := all.Image(m.Digest)
		if err != nil {
			return "", err
		}
		if err := remote.Write(tag.Context().Digest(m.Digest.String()), artifact, options...); err != nil {
			return "", fmt.Errorf("push the SBOM of %s: %w", tag, err)
		}
	}
	if digest == "" {
		return "", errors.New("no index of images in " + dir)
	}
	return tag.Context().Digest(digest).String(), nil
}
