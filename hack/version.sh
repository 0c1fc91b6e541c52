#!/bin/sh
# version.sh WORD: prints what a build of this tree calls itself.
#
#   version    the tag of this commit (v1.2.3, a semantic version), or a version that sorts
#              after the last tag and before the next: v1.2.4-0.DATE.gCOMMIT
#   revision   the commit; "-dirty" follows if files differ from it
#   epoch      the commit's time in seconds since 1970, for reproducible archives
#   ldflags    flags for `go build -ldflags` that put version and revision into the binary
#
# SHUNT_VERSION, SHUNT_REVISION and SOURCE_DATE_EPOCH overrule git, for a tree without it.
set -eu

cd "$(dirname "$0")/.."

git() { command git "$@" 2>/dev/null; }

dirty() {
	[ -z "$(git status --porcelain --untracked-files=no)" ] || echo -dirty
}

revision() {
	if [ -n "${SHUNT_REVISION:-}" ]; then
		echo "$SHUNT_REVISION"
	elif commit=$(git rev-parse HEAD); then
		echo "$commit$(dirty)"
	fi
}

version() {
	if [ -n "${SHUNT_VERSION:-}" ]; then
		echo "$SHUNT_VERSION"
	elif tag=$(git describe --tags --exact-match --match 'v[0-9]*') && [ -z "$(dirty)" ]; then
		echo "$tag"
	elif stamp=$(TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd.g%h --abbrev=12); then
		tag=$(git describe --tags --abbrev=0 --match 'v[0-9]*') || tag=v0.0.0
		case $tag in
		v0.0.0 | *-*) ;; # before the first release, or after a pre-release, which sorts right
		*) tag=${tag%.*}.$((${tag##*.} + 1))-0 ;;
		esac
		case $tag in *-*) tag=$tag. ;; *) tag=$tag- ;; esac
		echo "$tag$stamp$(dirty)"
	else
		echo devel
	fi
}

epoch() { echo "${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct || echo 0)}"; }

ldflags() {
	flags="-X shunt/cmd.version=$(version)"
	r=$(revision)
	[ -z "$r" ] || flags="$flags -X shunt/cmd.revision=$r"
	echo "$flags"
}

case ${1:-} in
version | revision | epoch | ldflags) "$1" ;;
*)
	echo "usage: version.sh version|revision|epoch|ldflags" >&2
	exit 2
	;;
esac
