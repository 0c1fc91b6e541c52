#!/bin/sh
# tool.sh PACKAGE@VERSION: builds a Go program into a cache outside the tree, if
# the cache does not have it, and prints its path. All other output is on stderr.
# It shares the cache of e2e/tools/build.sh:
#
#   $SHUNT_TOOLS_DIR/<version>/<name>    (default: ~/.cache/shunt/tools)
set -eu

package=${1%@*} version=${1#*@}
cache=${SHUNT_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:?HOME is not set: set SHUNT_TOOLS_DIR}/.cache}/shunt/tools}
dir=$cache/$version
name=$(basename "$package")

mkdir -p "$dir"
if [ ! -x "$dir/$name" ]; then
	(
		flock 9
		[ ! -x "$dir/$name" ] || exit 0 # another process built it meanwhile
		echo "building $name $version (minutes when nothing is cached)" >&2
		GOWORK=off CGO_ENABLED=0 GOBIN=$dir/$name.part go install "$package@$version" >&2
		mv "$dir/$name.part/$name" "$dir/$name"
		rmdir "$dir/$name.part"
	) 9>"$dir/$name.lock"
fi
echo "$dir/$name"
