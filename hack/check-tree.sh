#!/bin/bash
# check-tree.sh: checks rules of the tree that no linter has. Prints every
# violation and fails if there is one.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly max_lines=400
failed=0

offend() {
	echo "$1" >&2
	failed=1
}

# files PATTERN...: prints files that are or could be committed, one a line. In a
# tree without git, such as an unpacked archive, these are all files.
files() {
	if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
		git ls-files --cached --others --exclude-standard -- "$@"
	else
		find . -type f -not -path './bin/*' | sed 's|^\./||' |
			{ if [ $# -gt 0 ]; then grep -E "\\${1#\*}\$"; else cat; fi; }
	fi | while read -r f; do [ ! -f "$f" ] || echo "$f"; done
}

while read -r f; do
	if head -n 5 "$f" | grep -qE '^// Code generated .* DO NOT EDIT\.$'; then continue; fi
	lines=$(wc -l <"$f")
	[ "$lines" -le "$max_lines" ] || offend "$f: $lines lines, more than $max_lines: split it by concern"
done < <(files '*.go')

while read -r f; do
	head -n 5 "$f" | grep -qE '^// (SPDX-License-Identifier: |Code generated .* DO NOT EDIT\.$)' ||
		offend "$f: no SPDX-License-Identifier in its first lines (NOTICE says which)"
done < <(files '*.go' '*.c' '*.h')

# All text files except this one, which has to contain the patterns.
mapfile -t text < <(files | grep -vE '^(hack/check-tree\.sh|(.*/)?go\.sum)$')

while IFS= read -r hit; do
	offend "$hit: finish it, or open an issue"
done < <(grep -nIE '(//|/\*|^ *\*|#|<!--|--).*\b(TODO|FIXME|XXX)\b' -- "${text[@]}" || true)

# A home directory or a work directory exists on one machine only.
while IFS= read -r hit; do
	offend "$hit: a path of one machine"
done < <(grep -nIE "(^|[[:space:]\"'=:(\`])/(root|work|home/[a-z]+|Users/[A-Za-z]+)(/|\"|'|\`|[[:space:]]|\$)" -- "${text[@]}" || true)

# linked PAGE: prints "path" or "path, section" of each link to another page, and of each
# page that is named with a section.
linked() {
	tr '\n' ' ' <"$1" | grep -oE '(\]\(|[ (])[A-Za-z0-9_./-]+\.md\)?, "[^"]+"|\]\([^):]+\)' |
		sed -E 's/^(\]\(|[ (])//; s/\)//; s/"//g'
}

while read -r page; do
	while IFS= read -r link; do
		path=${link%%, *} section=
		[ "$path" = "$link" ] || section=${link#*, }
		anchor=; [[ $path != *'#'* ]] || { anchor=${path#*#} path=${path%%#*}; }
		to=$(dirname "$page")/$path
		[ -n "$path" ] || to=$page
		if [ ! -e "$to" ]; then
			offend "$page: a link to $path, which is not there"
		elif [ -n "$section" ] && ! sed -nE 's/^#+ //p' "$to" | grep -qxF "$section"; then
			offend "$page: $path has no section \"$section\""
		elif [ -n "$anchor" ] && ! sed -nE 's/^#+ //p' "$to" | tr 'A-Z ' 'a-z-' | grep -qx "$anchor"; then
			offend "$page: $to has no section for #$anchor"
		fi
	done < <(linked "$page")
done < <(files '*.md')

[ "$failed" = 0 ] || exit 1
echo "$(files | wc -l) files keep the rules of the tree"
