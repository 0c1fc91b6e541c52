#!/usr/bin/env bash
# Runs the tests of packages on kernels of the matrix, in VMs:
#
#   test.sh "5.10 6.1 6.12 newest" ./maps ./bpf [-- -run Load]
#
# Every kernel runs, also after a failure; the exit code is 0 if none failed. TCG
# makes system calls five to ten times slower, so tests are short and run two at a
# time. SHUNT_VM_SECONDS is the time limit of one package. A minute before, a test
# that still runs prints its stacks.
set -uo pipefail

kernels=${1:?usage: test.sh KERNELS PACKAGE... [-- TEST FLAGS]}
shift
packages=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
	packages+=("$1")
	shift
done
[ "${1:-}" != -- ] || shift
export SHUNT_VM_SECONDS=${SHUNT_VM_SECONDS:-900}
here=$(cd "$(dirname "$0")" && pwd)

failed=()
for kernel in $kernels; do
	if ! dir=$("$here/fetch.sh" "$kernel"); then
		failed+=("$kernel")
		continue
	fi
	echo "== Linux $(cat "$dir/version")"
	# Static, since the VM has no C library; the race detector needs one.
	CGO_ENABLED=0 go test -short -p 1 -parallel 2 -count 1 -timeout $((SHUNT_VM_SECONDS - 60))s -exec "$here/vm.sh $kernel" "${packages[@]}" "$@" ||
		failed+=("$kernel")
done
if [ ${#failed[@]} -gt 0 ]; then
	echo "failed on: ${failed[*]}" >&2
	exit 1
fi
echo "passed on: $kernels"
