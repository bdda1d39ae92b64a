#!/usr/bin/env bash
# Scaling curves on 8 GPUs of one host, in two calls of less than 600 s on the SAME warm machine (after install.sh, weights.sh
# and .gpu/data): `session_x8.sh 1`, then `session_x8.sh 2`. The studies are resumable: call 2 goes on where call 1 ended.
# Before the calls, `harness experiment predict --study h100-x2-small --to 8` draws the curve from 1 and 2 GPUs; after them, `harness
# predict --study h100-x8-small --to 8` lays the points on the curve fitted to that machine's 1 and 2, and states the error.
# `session_x8.sh plan` prints what would be run, anywhere, and starts nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
case "${1:-}" in
    1) set -- 235 h100-x8-small 335 h100-x8-llama ;;
    2) set -- 190 h100-x8-llama-sharded 375 h100-x8-7b ;;
    plan)
        for study in small llama llama-sharded 7b; do
            "${HARNESS:-harness}" compare "h100-x8-$study" --take-turns --dry-run | sed -n 1p
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
