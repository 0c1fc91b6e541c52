#!/bin/bash
# test-image.sh: builds the images of this tree twice, in different directories, and fails
# if one byte differs, if an image has more than it should, or if its binary does not run.
# The second build has the compiler's cache of the first; FRESH=1 compiles all of it again,
# which takes minutes more.
set -euo pipefail

tree=$(cd "$(dirname "$0")/.." && pwd)
readonly arches=(amd64 arm64)
# A third of the binary is left out without the reports of bench: see cmd/lab_node.go.
readonly max_bytes=45000000
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
export SHUNT_VERSION=v1.2.3-test SHUNT_REVISION=0123abc SOURCE_DATE_EPOCH=1700000000

fail() { echo "test-image.sh: $*" >&2; exit 1; }

# copied DIR: a copy of the tree's files, without what git ignores.
copied() {
	mkdir -p "$1"
	(cd "$tree" && git ls-files -z --cached --others --exclude-standard | while IFS= read -rd '' f; do
		[ ! -e "$f" ] || printf '%s\0' "$f"
	done | tar -c --null -T -) | tar -xm -C "$1"
}

copied "$work/one"
copied "$work/elsewhere/two"
"$work/one/hack/image.sh" "$work/out1" "${arches[@]}"
[ -z "${FRESH:-}" ] || export GOCACHE=$work/cache
(umask 077 && TZ=Asia/Tokyo LC_ALL=C "$work/elsewhere/two/hack/image.sh" "$work/out2" "${arches[@]}" >/dev/null)

sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
diff <(sums "$work/out1") <(sums "$work/out2") || fail "two builds of one tree differ"

for package in shunt/lab shunt/bench html/template; do
	! (cd "$tree" && go list -deps -tags node . | grep -qx "$package") || fail "the image's binary has $package"
done

ran=0
for arch in "${arches[@]}"; do
	root=$work/root-$arch
	mkdir "$root"
	layer=$(tar -xOf "$work/out1/image/shunt-linux-$arch.tar" manifest.json | grep -oE '[0-9a-f]+\.tar\.gz')
	tar -xOf "$work/out1/image/shunt-linux-$arch.tar" "$layer" | tar -xz --no-same-owner -C "$root"
	binary=$root/usr/local/bin/shunt
	bytes=$(stat -c %s "$binary")
	[ "$bytes" -le $max_bytes ] || fail "the binary for $arch has $bytes bytes: does a package call methods by name (text/template, html/template)?"
	run=()
	if [ "$arch" != "$(go env GOHOSTARCH)" ]; then
		qemu=$("$tree/hack/qemu.sh" "$arch") || { echo "not run: the binary for $arch, without qemu-user" >&2; continue; }
		run=("$qemu")
	fi
	said=$("${run[@]}" "$binary" version)
	[[ $said == "shunt $SHUNT_VERSION (revision $SHUNT_REVISION, map ABI "* ]] || fail "the binary for $arch says: $said"
	! "${run[@]}" "$binary" --help | grep -E '^  (bench|demo) ' || fail "the binary for $arch has commands of the lab"
	ran=$((ran + 1))
done
echo "two builds are the same: $(cat "$work/out1/image/digest"); ran $ran of ${#arches[@]} binaries"
