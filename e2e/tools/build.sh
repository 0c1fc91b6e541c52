#!/bin/sh
# build.sh TOOL...: builds the named tools (a tool directive of ./go.mod, by its
# last word: etcd, kube-apiserver, kube-controller-manager, kube-proxy) into a
# cache outside the tree, and prints the path of each on stdout, one a line.
#
#   $SHUNT_TOOLS_DIR/<version>/<tool>    (default: ~/.cache/shunt/tools)
#
# Does nothing for a tool that is there already. Two calls at once do not build
# twice: the second one waits for the first. Everything but the paths is on stderr.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${SHUNT_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:?HOME is not set: set SHUNT_TOOLS_DIR}/.cache}/shunt/tools}

say() { echo "build.sh: $*" >&2; }

# required MODULE: the version that go.mod asks for.
required() {
	awk -v m="$1" '$1 == m && $2 ~ /^v/ { print $2; exit }' "$here/go.mod"
}

# compile PACKAGE VERSION OUTPUT: one static binary. Kubernetes takes its version
# from the linker; without it the API server calls itself v0.0.0-master.
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

# build TOOL: prints the path of the binary, made first if it is missing.
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
			[ ! -x "$binary" ] || exit 0 # somebody else built it while we waited
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
