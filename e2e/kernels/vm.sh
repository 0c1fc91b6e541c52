#!/usr/bin/env bash
# Runs a static test binary on another kernel, in a temporary VM:
#
#   CGO_ENABLED=0 go test -exec "$PWD/e2e/kernels/vm.sh 5.10" ./bpf
#
# The VM has the binary, busybox, the programs that tests run (this machine's, with
# their libraries), the package's testdata, modules of the kernel, and nothing else:
# no disk and no network. Its exit code is this script's.
set -euo pipefail

want=${1:?usage: vm.sh KERNEL BINARY [ARGUMENTS]}
binary=${2:?usage: vm.sh KERNEL BINARY [ARGUMENTS]}
shift 2
here=$(cd "$(dirname "$0")" && pwd)
limit=${SHUNT_VM_SECONDS:-900}
kernel=$("$here/fetch.sh" "$want")
version=$(cat "$kernel/version")

tmp=$(mktemp -d)
qemu=
cleanup() {
	[ -z "$qemu" ] || kill "$qemu" 2>/dev/null || true
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

root=$tmp/root
mkdir -p "$root"/{bin,dev,etc,proc,run/netns,sys,tmp,test,lib/modules/"$version"}
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$binary" "$root/test/binary"
if [ -d testdata ]; then cp -r testdata "$root/test/testdata"; fi
# Tests that compare Go with C, and those that read another package's files, expect
# these at the same relative paths as in the tree: the binary runs in /test as in a
# package's directory.
mkdir -p "$root"/{bpf,cmd}
cp -r "$here/../../bpf/include" "$root/bpf/include"
cp -r "$here/../../cmd/testdata" "$root/cmd/testdata"

# The programs that tests run, and their libraries, at the same paths. The restore
# commands are one program with many names, which loads a library for each match.
missing() { echo "vm.sh: $1 is not installed (make setup-kernels)" >&2; exit 1; }
matches=$(find /usr/lib -name libxt_conntrack.so -printf '%h' -quit)
[ -n "$matches" ] || missing iptables
cp --parents -r "$matches" "$root"
mkdir -p "$root/usr/sbin"
for program in ip tc nft conntrack unshare nsenter xtables-nft-multi xtables-legacy-multi; do
	path=$(PATH=$PATH:/usr/sbin:/sbin command -v "$program") || missing "$program"
	cp -L "$path" "$root/usr/sbin/$program"
	ldd "$path" | grep -o '/[^ ]*' | xargs cp --parents -L -u -t "$root"
done
for flavour in nft legacy; do
	for name in iptables ip6tables; do
		for verb in "" -save -restore; do
			ln -s "xtables-$flavour-multi" "$root/usr/sbin/$name-$flavour$verb"
		done
	done
done

# The modules that the tests use, and those that they depend on.
devices="veth bridge vxlan dummy tun ipv6 sch_ingress cls_bpf act_mirred udp_diag tcp_diag inet_diag"
rules="nf_tables nft_compat nft_counter nft_ct nft_masq nft_chain_nat nft_fib_ipv4 nft_fib_ipv6 nft_fib_inet
	iptable_filter iptable_nat iptable_raw ip6table_filter ip6table_nat ip6table_raw ipt_rpfilter ip6t_rpfilter
	xt_mark xt_conntrack xt_addrtype xt_MASQUERADE xt_comment xt_set xt_tcpudp xt_nat
	ip_vs_rr ip_set_hash_ip nf_conntrack_netlink"
for m in $devices $rules; do
	modprobe -d "$kernel" -S "$version" --show-depends "$m" 2>/dev/null | sed -n 's/^insmod //p' || true
done | awk '!seen[$1]++ { print $1 }' >"$tmp/modules"
n=0
while read -r ko; do
	cp "$ko" "$root/lib/modules/$(printf %03d $n)-$(basename "$ko")"
	n=$((n + 1))
done <"$tmp/modules"

{
	printf '/test/binary'
	printf ' %q' "$@"
	echo
} >"$root/test/command"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/bin HOME=/tmp TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/netns
for ko in /lib/modules/*.ko; do insmod "$ko" 2>/dev/null; done
ip link set lo up
cd /test
exec >/dev/ttyS1 2>&1 </dev/null
stty -F /dev/ttyS1 raw 2>/dev/null
sh /test/command
echo "vm-exit-code $?"
sync
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$tmp/initrd"

# Off, since they are slow in software and not tested here: separate page tables of the
# kernel, and long RCU grace periods at the end of each of many network namespaces.
quick="mitigations=off rcupdate.rcu_expedited=1 tsc=reliable audit=0"
# The VM's CPUs take turns (thread=single). With parallel CPUs (thread=multi), a VM panicked
# in tc_run, at the address of a static key that other tests switch: under QEMU's emulation, a
# CPU can run the breakpoint with which the kernel patches its code after it was removed.
qemu-system-x86_64 -M pc -cpu max -smp 2 -m "${SHUNT_VM_MEMORY:-2048}" -accel tcg,thread=single \
	-display none -no-reboot -nodefaults -kernel "$kernel/vmlinuz" -initrd "$tmp/initrd" \
	-append "console=ttyS0 quiet panic=-1 rdinit=/init $quick" \
	-serial "file:$tmp/console" -serial "file:$tmp/out" </dev/null &
qemu=$!
deadline=$((SECONDS + limit))
while kill -0 "$qemu" 2>/dev/null; do
	if [ $SECONDS -ge $deadline ]; then
		echo "vm.sh: kernel $version: not done within $limit s" >&2
		break
	fi
	sleep 0.2
done
tr -d '\r' <"$tmp/out" | grep -v '^vm-exit-code ' || true
code=$(tr -d '\r' <"$tmp/out" | sed -n 's/^vm-exit-code //p')
if [ -z "$code" ]; then
	echo "vm.sh: kernel $version ended without a result; its console said last:" >&2
	tail -n 20 "$tmp/console" >&2
	exit 1
fi
exit "$code"
