#!/bin/sh
# as-root.sh COMMAND [ARG...]: runs a command as root: directly, or by sudo with
# the environment that Go's tools and our scripts read. Without either it says so.
set -eu

[ "$(id -u)" != 0 ] || exec "$@"
command -v sudo >/dev/null || {
	echo "as-root.sh: this needs root, and there is no sudo: run it as root: $*" >&2
	exit 1
}
# sudo takes PATH and HOME away; a cache is best kept where it was.
exec sudo env "PATH=$PATH" "HOME=$HOME" "CI=${CI:-}" "SHUNT_TOOLS_DIR=${SHUNT_TOOLS_DIR:-}" \
	"XDG_CACHE_HOME=${XDG_CACHE_HOME:-}" "GOFLAGS=${GOFLAGS:-}" "$@"
