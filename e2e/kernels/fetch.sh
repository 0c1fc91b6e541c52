#!/usr/bin/env bash
# Downloads a Debian kernel of the matrix into a directory outside the tree, and
# prints the directory. It has vmlinuz, and the modules below lib/modules.
#
#   fetch.sh 5.10|6.1|6.12|newest
#
# apt gets a separate configuration, with the mirrors and keys of this machine, so
# that the machine's own package lists are not changed.
set -euo pipefail

want=${1:?usage: fetch.sh 5.10|6.1|6.12|newest}
cache=${SHUNT_KERNELS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/shunt/kernels}
dir=$cache/$want
mkdir -p "$cache"
exec 9>"$cache/$want.lock"
flock 9
if [ -e "$dir/done" ]; then
	echo "$dir"
	exit
fi

# mirror archive|security: prints the machine's mirror, from either format of sources.
mirror() {
	local all
	all=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
		sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p' | grep -E '/debian(-security)?/?$' || true)
	case $1 in
	archive) grep -E '/debian/?$' <<<"$all" | head -n 1 ;;
	security) grep -E '/debian-security/?$' <<<"$all" | head -n 1 ;;
	esac
}
archive=$(mirror archive)
security=$(mirror security)
: "${archive:?no Debian mirror in /etc/apt: this needs a Debian machine}"
: "${security:=${archive%/}-security}"

case $want in
5.10) line="$security bullseye-security" name='^linux-image-5\.10\.[0-9.-]+-cloud-amd64$' ;;
6.1) line="$archive bookworm" name='^linux-image-6\.1\.[0-9.-]+-cloud-amd64$' ;;
6.12) line="$archive trixie" name='^linux-image-6\.12\.[0-9+deb.-]+-cloud-amd64$' ;;
newest) line="$archive trixie-backports" name='^linux-image-[0-9][0-9+deb.~bpo-]+-cloud-amd64$' ;;
*) echo "fetch.sh: $want: there are 5.10, 6.1, 6.12 and newest" >&2; exit 2 ;;
esac

apt=$cache/$want.apt
rm -rf "$apt" "$dir"
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$dir"
echo "deb $line main" >"$apt/sources.list"
: >"$apt/status"
opts=(-qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
	-o "Dir::State::Lists=$apt/lists" -o "Dir::State::status=$apt/status"
	-o "Dir::Cache::archives=$apt/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
	-o APT::Architecture=amd64 -o APT::Sandbox::User=root)
apt-get "${opts[@]}" update >&2
pkg=$(apt-cache "${opts[@]}" search --names-only "$name" | cut -d' ' -f1 | sort -V | tail -n 1)
: "${pkg:?no kernel package matches $name}"
# Newer kernels have parts of the image in separate packages.
parts=$(apt-cache "${opts[@]}" depends "$pkg" | sed -nE 's/^ *(Pre)?-?Depends: (linux-(modules|binary|base)-[0-9].*)/\2/p')
(cd "$apt" && apt-get "${opts[@]}" download "$pkg" $parts >&2)
for deb in "$apt"/*.deb; do
	dpkg -x "$deb" "$dir/root"
done
version=$(ls "$dir/root/lib/modules" 2>/dev/null || ls "$dir/root/usr/lib/modules")
mkdir -p "$dir/lib"
if [ -d "$dir/root/usr/lib/modules" ]; then mv "$dir/root/usr/lib/modules" "$dir/lib/"; else mv "$dir/root/lib/modules" "$dir/lib/"; fi
# In /boot, or in newer packages next to the modules.
mv "$(find "$dir/root/boot" "$dir/lib" -name 'vmlinuz*' 2>/dev/null | head -n 1)" "$dir/vmlinuz"
rm -rf "$dir/root" "$apt"
find "$dir/lib" -name '*.ko.xz' -exec xz -d {} +
find "$dir/lib" -name '*.ko.zst' -exec zstd -q -d --rm {} +
depmod -b "$dir" "$version"
echo "$version" >"$dir/version"
touch "$dir/done"
echo "$dir"
