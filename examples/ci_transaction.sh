#!/usr/bin/env bash
# CI steps whose results count together or not at all: `wal run -- examples/ci_transaction.sh`.
#
# `wal txn run` gives the steps a transaction in WAL_TXN, which every `wal append` in them joins. It
# commits when the last one succeeds; when one fails, nobody ever sees what the others reported.
set -euo pipefail

steps='
set -e
wal append results "build passed" -q
wal append results "lint passed" -q
wal append artefacts "app-$VERSION.tar.gz" -k "$VERSION" -q
test "$BROKEN" = no
'
BROKEN=yes VERSION=1.0 wal txn run results artefacts -- sh -c "$steps" && exit 1
echo "after the failed run: $(wal tail results -o raw | wc -l) results"
BROKEN=no VERSION=1.1 wal txn run results artefacts -- sh -c "$steps"
echo "after the good run: $(wal tail results -o raw | wc -l) results," \
    "$(wal tail artefacts -o raw)"

# A step that may be retried by the CI system: however often it runs, its input is there once.
for attempt in 1 2 3; do
    printf 'case %s passed\n' 1 2 3 | wal append cases --dedup "pipeline-42/tests" -q
done
test "$(wal tail cases -o raw | wc -l)" -eq 3
