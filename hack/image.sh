#!/bin/bash
# image.sh OUT ARCH...: makes OCI images of this tree in directory OUT, without a Docker
# engine and without a base image. hack/image says what OUT has then.
#
# IMAGE is the name in the archives for `docker load` (default: shunt), and SOURCE_URL the
# address of the source, if it has one.
set -euo pipefail

tree=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift

image=${IMAGE:-shunt}
image=${image,,} # registries take no capitals
version=$("$tree/hack/version.sh" version)
revision=$("$tree/hack/version.sh" revision)
flags="-s -w $("$tree/hack/version.sh" ldflags)"

binaries=()
for arch; do
	CGO_ENABLED=0 GOOS=linux GOARCH=$arch GOAMD64=v1 GOARM64=v8.0 GOFLAGS='' \
		go build -C "$tree" -tags node -trimpath -buildvcs=false -ldflags "$flags" -o "$out/bin/$arch/shunt" .
	binaries+=("$arch=$out/bin/$arch/shunt")
done

files=()
for f in LICENSE NOTICE $(cd "$tree" && ls LICENSES/*); do
	files+=(-file "$tree/$f=usr/share/doc/shunt/$f")
done

cd "$tree/hack/image"
go run . build -out "$out/image" -name "$image" -version "$version" -revision "$revision" -url "${SOURCE_URL:-}" \
	-epoch "$("$tree/hack/version.sh" epoch)" "${files[@]}" "${binaries[@]}"
cd "$out"
echo "$image:$version" "$(cat image/digest)" "in $out/image:"
ls -sh1 image
