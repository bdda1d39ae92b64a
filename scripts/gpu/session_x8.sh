#!/usr/bin/env bash
# Scaling curves on 8 GPUs of one host, in two calls of less than 600 s on the SAME warm machine (after install.sh, weights.sh
# and .gpu/data): `session_x8.sh 1`, then `session_x8.sh 2`. The studies are resumable: call 2 goes on where call 1 ended.
# Before the calls, `harness experiment predict --study CARD-x2-scaling-small --to 8` draws the curve from 1 and 2 GPUs; after them,
# the same with CARD-x8-scaling-small lays the points on the curve fitted to that machine's 1 and 2, and states the error.
# `session_x8.sh plan` prints what would be run, anywhere, and starts nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
# The ends of the curve first: a call may end before the middle. One repeat: each step is timed.
curve="--workers 8,1,4,2 --repeats 1"
case "${1:-}" in
    1)
        set -- 120 "scaling-small $curve" 115 "scaling-small $curve --scaling strong --study scaling-small-strong" \
            170 "scaling-llama $curve" 165 "scaling-llama $curve --scaling weak --study scaling-llama-weak"
        ;;
    2) set -- 190 "scaling-llama-sharded $curve" 375 "scaling-7b $curve" ;;
    plan)
        for study in "small --scaling weak" "small --scaling strong" "llama --scaling strong" "llama --scaling weak" llama-sharded 7b; do
            read -ra words <<<"scaling-$study $curve"
            "${HARNESS:-harness}" compare "${words[@]}" --take-turns --dry-run | sed -n 1p
        done
        echo "two calls of 570 s: what does not fit stays open, and the same command goes on with it in a third"
        exit 0
        ;;
    *)
        echo "usage: session_x8.sh 1|2|plan" >&2
        exit 2
        ;;
esac
exec bash scripts/gpu/session_speed.sh "$@"
