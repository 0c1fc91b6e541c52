#!/bin/bash
# steps.sh TARGET...: makes every target in turn, also after a failure, then prints
# how long each took and its result. Fails if one failed. Ends at once when
# interrupted.
set -uo pipefail

cd "$(dirname "$0")/.."
trap 'echo "interrupted" >&2; exit 130' INT TERM
# A target may write a line here for the end: the counts of its tests.
SHUNT_SUMMARY=$(mktemp)
export SHUNT_SUMMARY
trap 'rm -f "$SHUNT_SUMMARY"' EXIT

# now prints the time in milliseconds.
now() { date +%s%3N; }

# seconds MS: prints seconds with one decimal.
seconds() { printf '%d.%d' $(($1 / 1000)) $(($1 % 1000 / 100)); }

table='' failed=0
began=$(now)
for target; do
	echo "=== $target"
	start=$(now)
	if "${MAKE:-make}" --no-print-directory "$target" </dev/null; then result=ok; else result=FAILED failed=$((failed + 1)); fi
	table+=$(printf '%-18s %9s s  %s' "$target" "$(seconds $(($(now) - start)))" "$result")$'\n'
done

echo "=== times"
printf '%s' "$table"
if [ "$failed" = 0 ]; then verdict="all $# steps passed"; else verdict="$failed of $# steps FAILED"; fi
tests=$(cat "$SHUNT_SUMMARY")
echo "$verdict in $(seconds $(($(now) - began))) s; tests: ${tests:-not run}"
[ "$failed" = 0 ]
