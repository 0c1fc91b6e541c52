#!/bin/sh
# qemu.sh ARCH [PROGRAM ARG...]: runs a program of another architecture under qemu-user, or
# prints the path of the emulator where there is no program. Fails if there is none. It can be
# an argument of `go test -exec`.
set -eu

case $1 in
arm64) name='qemu-aarch64' ;;
amd64) name='qemu-x86_64' ;;
*)
	echo "qemu.sh: $1: use amd64 or arm64" >&2
	exit 2
	;;
esac
shift
qemu=$(command -v "$name-static" || command -v "$name") || {
	echo "qemu.sh: no $name: install Debian's qemu-user-static" >&2
	exit 1
}
if [ $# = 0 ]; then echo "$qemu"; else exec "$qemu" "$@"; fi
