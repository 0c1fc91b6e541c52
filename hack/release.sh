#!/bin/bash
# release.sh OUT ARCH...: makes the files of a release in OUT/release from the images in
# OUT/image: binaries, archives of the image, manifests, SBOMs and SHA256SUMS.
set -euo pipefail

tree=$(cd "$(dirname "$0")/.." && pwd)
out=$(cd "$1" && pwd)
shift
version=$("$tree/hack/version.sh" version)
epoch=$("$tree/hack/version.sh" epoch)
files=$out/release

# archive DIR FILE...: a tar of files with nothing of this machine in it.
archive() {
	tar -C "$1" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" --mode='u+rw,go+r,go-w' -c "${@:2}" | gzip -9n
}

rm -rf "$files"
mkdir -p "$files"
for arch; do
	# The whole program, with demo and bench; the image's binary is without.
	CGO_ENABLED=0 GOOS=linux GOARCH=$arch GOAMD64=v1 GOARM64=v8.0 GOFLAGS='' \
		go build -C "$tree" -trimpath -buildvcs=false -ldflags "-s -w $("$tree/hack/version.sh" ldflags)" \
		-o "$out/full/$arch/shunt" .
	cp "$tree/LICENSE" "$tree/NOTICE" "$out/full/$arch/"
	rm -rf "$out/full/$arch/LICENSES" && cp -r "$tree/LICENSES" "$out/full/$arch/"
	archive "$out/full/$arch" shunt LICENSE NOTICE LICENSES >"$files/shunt-$version-linux-$arch.tar.gz"
	gzip -9nc "$out/image/shunt-linux-$arch.tar" >"$files/shunt-$version-image-linux-$arch.tar.gz"
	cp "$out/image/shunt-linux-$arch.cdx.json" "$files/shunt-$version-image-linux-$arch.cdx.json"
done
archive "$tree" deploy >"$files/shunt-$version-deploy.tar.gz"
cd "$files"
sha256sum -- * >SHA256SUMS
cat SHA256SUMS
