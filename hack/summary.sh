#!/bin/sh
# summary.sh: gotestsum calls it after the tests. It writes their counts for the
# last line of steps.sh.
set -eu
[ -n "${SHUNT_SUMMARY:-}" ] || exit 0
echo "$TESTS_TOTAL run, $TESTS_FAILED failed, $TESTS_SKIPPED skipped, $TESTS_ERRORS errors" >"$SHUNT_SUMMARY"
