#!/bin/sh
# packages.sh FILE:PACKAGE...: installs every Debian package whose FILE is
# missing: a program by its name, or a file by its path. If none is missing it does
# nothing, and needs neither root nor apt-get.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# Users other than root may not have these in PATH, though the programs exist.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

there() {
	case $1 in
	/*) [ -e "$1" ] ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

missing=
for pair; do
	there "${pair%%:*}" || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || {
	echo "packages.sh: missing:$missing (by Debian's names), and there is no apt-get: install them by this system's own means" >&2
	exit 1
}
echo "installing$missing"
apt() { "$here/as-root.sh" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null; }
apt update
# shellcheck disable=SC2086 # one word a package
apt install -y --no-install-recommends $missing >/dev/null
for pair; do
	there "${pair%%:*}" || {
		echo "packages.sh: package ${pair#*:} is installed, but ${pair%%:*} is still missing" >&2
		exit 1
	}
done
