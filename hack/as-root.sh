#!/bin/sh
# as-root.sh [--try] COMMAND [ARG...]: runs a command as root: directly, or by
# sudo with the environment that Go's tools and shunt's scripts read. If neither
# is possible it fails with a message; with --try it runs the command as this user.
set -eu

try=
if [ "${1:-}" = --try ]; then
	try=yes
	shift
fi
[ "$(id -u)" != 0 ] || exec "$@"
if ! command -v sudo >/dev/null; then
	[ -z "$try" ] || exec "$@"
	echo "as-root.sh: network namespaces, eBPF and apt-get need root, and there is no sudo: run this as root: $*" >&2
	exit 1
fi
# sudo resets PATH and HOME. Tools that are built already are in the user's cache.
# Root has a build cache of its own: the user could not write to files of root in
# the user's. Git refuses to let root read another user's tree: no VCS stamp.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/shunt
exec sudo env "PATH=$PATH" "HOME=$HOME" "CI=${CI:-}" "XDG_CACHE_HOME=${XDG_CACHE_HOME:-}" \
	"SHUNT_TOOLS_DIR=${SHUNT_TOOLS_DIR:-}" "GOCACHE=$cache/go-build-root" "GOFLAGS=${GOFLAGS:-} -buildvcs=false" \
	"BPF_CFLAGS=${BPF_CFLAGS:-}" "SOAK_MINUTES=${SOAK_MINUTES:-}" "SOAK_SEED=${SOAK_SEED:-}" "$@"
