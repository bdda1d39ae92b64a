#!/usr/bin/env bash
# Scaling curves on 4 GPUs of one host, in calls of less than 600 s on the SAME warm machine: `session_x4.sh 1`, carrying .gpu/base
# and .gpu/data; a call `session_x4.sh weights` for each .gpu/weights-N (parity is trained meanwhile); `session_x4.sh 2`; `3`.
# The studies are resumable: the same call again goes on where it ended.
set -euo pipefail
cd "$(dirname "$0")/../.."
curve="--workers 4,1,2"
case "${1:-}" in
    1)
        bash scripts/gpu/install.sh
        exec bash scripts/gpu/session_speed.sh 45 tests 340 "scaling-llama $curve" \
            110 "scaling-llama-sharded $curve"
        ;;
    weights)
        bash scripts/gpu/session_parity.sh start
        exec bash scripts/gpu/weights.sh
        ;;
    2)
        timeout 150 bash scripts/gpu/session_parity.sh collect || true
        exec bash scripts/gpu/session_speed.sh 260 "scaling-small $curve --repeats 4" \
            150 "precisions --workers 4 --repeats 2"
        ;;
    3) exec bash scripts/gpu/session_speed.sh 340 "scaling-7b $curve --repeats 2" 110 comm 110 overhead ;;
    *)
        echo "usage: session_x4.sh 1|weights|2|3" >&2
        exit 2
        ;;
esac
