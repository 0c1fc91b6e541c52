#!/bin/sh
# build.sh TOOL...: builds the named tools (the last element of a tool directive in
# ./go.mod: etcd, kube-apiserver, kube-controller-manager, kube-proxy) into a cache
# outside the tree, and prints the path of each on stdout, one a line.
#
#   $SHUNT_TOOLS_DIR/<version>/<tool>    (default: ~/.cache/shunt/tools)
#
# It does not build a tool that is in the cache. Two calls at once do not build
# twice: the second one waits for the first. All other output is on stderr.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${SHUNT_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:?HOME is not set: set SHUNT_TOOLS_DIR}/.cache}/shunt/tools}

say() { echo "build.sh: $*" >&2; }

# required MODULE: prints the version that go.mod requires.
required() {
	awk -v m="$1" '$1 == m && $2 ~ /^v/ { print $2; exit }' "$here/go.mod"
}

# compile PACKAGE VERSION OUTPUT: builds one static binary. The linker sets Kubernetes'
# version; without it the API server reports v0.0.0-master.
compile() {
	stamp="-s -w"
	case $1 in
	k8s.io/kubernetes/*)
		v=k8s.io/component-base/version
		minor=${2#v1.}
		stamp="$stamp -X $v.gitVersion=$2 -X $v.gitMajor=1 -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean"
		;;
	esac
	GOWORK=off CGO_ENABLED=0 go build -C "$here" -trimpath -buildvcs=false -ldflags "$stamp" -o "$3" "$1" >&2
}

# build TOOL: prints the path of the binary, and builds it first if it is missing.
build() {
	case $1 in
	etcd) package=go.etcd.io/etcd/server/v3 module=go.etcd.io/etcd/server/v3 ;;
	kube-apiserver | kube-controller-manager | kube-proxy) package=k8s.io/kubernetes/cmd/$1 module=k8s.io/kubernetes ;;
	*)
		say "no tool is called $1: use etcd, kube-apiserver, kube-controller-manager or kube-proxy"
		return 2
		;;
	esac
	version=$(required "$module")
	if [ -z "$version" ]; then
		say "$here/go.mod does not require $module: put it back with 'go get -tool $package'"
		return 1
	fi
	binary=$cache/$version/$1
	if [ ! -x "$binary" ]; then
		mkdir -p "$cache/$version"
		(
			flock 9
			[ ! -x "$binary" ] || exit 0 # another process built it meanwhile
			say "building $1 $version (minutes when nothing is cached)"
			start=$(date +%s)
			# One name is enough under the lock, and what an interrupted call
			# left is overwritten by the next one.
			compile "$package" "$version" "$binary.part"
			mv "$binary.part" "$binary"
			say "built $1 $version in $(($(date +%s) - start)) s"
		) 9>"$binary.lock"
	fi
	echo "$binary"
}

[ $# -gt 0 ] || { say "usage: build.sh TOOL..."; exit 2; }
for need in go flock awk; do
	command -v "$need" >/dev/null || { say "$need is missing: install it and run this again"; exit 1; }
done
for tool in "$@"; do
	build "$tool"
done
