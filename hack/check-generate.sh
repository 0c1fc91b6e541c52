#!/bin/bash
# check-generate.sh: lists the generated files that differ from the result of
# `make generate` with the current sources. It generates in a copy: local changes
# to sources count, the tree is not changed, and a failed check fails again.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT TERM

# generated DIR: prints every generated file below DIR with its checksum, sorted.
generated() {
	(cd "$1" && find . -path ./.git -prune -o \( -name '*_bpfel.go' -o -name '*_bpfel.o' \) -print0 |
		sort -z | xargs -0 -r sha256sum)
}

tar -C "$root" --exclude=./.git --exclude=./bin -cf - . | tar -C "$copy" -xf -
# A file that is no longer generated must not pass as unchanged.
find "$copy" \( -name '*_bpfel.go' -o -name '*_bpfel.o' \) -delete
make --no-print-directory -C "$copy" generate

if ! diff -u --label 'in the tree' <(generated "$root") --label 'made anew' <(generated "$copy"); then
	echo "generated files differ from their sources: run 'make generate' and commit what it changes" >&2
	exit 1
fi
echo "$(generated "$root" | wc -l) generated files are what their sources make"
