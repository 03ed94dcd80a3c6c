#!/usr/bin/env bash
# A CI step with a log of its own: start it by `wal run -- examples/ci_step.sh`.
#
# `wal run` starts a daemon on a temporary directory, sets WAL_DIR and WAL_SOCKET for this script,
# exits with this script's status, and removes daemon and directory afterwards.
set -euo pipefail

for number in 1 2 3; do
    wal append results "test $number passed" -k "test-$number" -q
done
wal append results "test 4 skipped: no network" -k test-4 -q

passed=$(wal tail results -o raw | grep -c passed)
echo "passed: $passed"
test "$passed" -eq 3
