#!/bin/sh
# summary.sh: gotestsum calls it when tests have ended; it leaves the counts for
# the last line that steps.sh prints.
set -eu
[ -n "${SHUNT_SUMMARY:-}" ] || exit 0
echo "$TESTS_TOTAL run, $TESTS_FAILED failed, $TESTS_SKIPPED skipped, $TESTS_ERRORS errors" >"$SHUNT_SUMMARY"
