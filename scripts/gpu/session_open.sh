#!/usr/bin/env bash
# What no session has measured yet, on 4 GPUs of one host (2 do, with fewer rows), in calls of less than 600 s on the SAME warm
# machine: `session_open.sh 1`, carrying .gpu/base and .gpu/data; a call `weights.sh` for each .gpu/weights-N; `session_open.sh 2`; `3`.
set -euo pipefail
cd "$(dirname "$0")/../.."
case "${1:-}" in
    1)
        bash scripts/gpu/install.sh
        exec bash scripts/gpu/session_speed.sh 120 tests 390 h100-x4-llama-weak
        ;;
    2) exec bash scripts/gpu/session_speed.sh 190 h100-x4-small-precision 170 overhead 170 h100-x2-llama-wire ;;
    3)
        (
            # Horovod had not come back from 1 GiB when the time ended (results/h200-x4-comm): slow checking (mended), or stuck?
            . scripts/gpu/env.sh
            HOROVOD_LOG_LEVEL=debug timeout -s INT -k 5 70 harness comm --device cuda --slots 2 --via horovod --ops all_reduce --min 128M \
                --max 1G --step 2 --budget 0.05 --out /tmp/results-speed/comm-large 2>&1 | tail -n 30 | cut -c1-200
        ) || true
        exec bash scripts/gpu/session_speed.sh 340 h100-x4-7b-compile 110 h100-x4-small
        ;;
    *)
        echo "usage: session_open.sh 1|2|3" >&2
        exit 2
        ;;
esac
