#!/usr/bin/env bash
# Ship what a program prints, and watch it on the way: examples/log_shipping.sh [LINES]
set -euo pipefail
lines=${1:-5}
collection=shipped

# Each line is on stable storage before `wal append` acknowledges it.
chatty() {
    for number in $(seq 1 "$lines"); do
        echo "request $number answered"
        sleep 0.05
    done
}

# The reader starts first, on a collection that exists, and ends by itself after all lines.
wal collection ls -o json | grep -q "\"$collection\"" || wal collection create "$collection" >&2
wal tail "$collection" -f --from latest --count "$lines" -o raw &
reader=$!
trap 'kill "$reader" 2>/dev/null || true' EXIT

# `--from latest` means: from when the reader is connected. Wait for that before anything is sent.
until wal status -o json | grep -q '"subscriptions": [1-9]'; do sleep 0.05; done

chatty | wal append "$collection" -H "host=$(uname -n)" >&2
wait "$reader"
