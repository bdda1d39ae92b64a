#!/usr/bin/env bash
# What no session has measured yet, in calls of less than 600 s. On 4 GPUs of one host (2 do, with fewer rows), on the SAME warm
# machine: `session_open.sh 1`, carrying .gpu/base and .gpu/data; a call `weights.sh` for each .gpu/weights-N; `session_open.sh 2`.
# Then, on one GPU, carrying .gpu/base: `session_open.sh 3`; `session_open.sh 4`.
set -euo pipefail
cd "$(dirname "$0")/../.."
case "${1:-}" in
    1)
        bash scripts/gpu/install.sh
        exec bash scripts/gpu/session_speed.sh 200 overhead 330 h100-x4-llama-weak
        ;;
    2)
        (
            # Horovod had not come back from 1 GiB when the time ended (results/h200-x4-comm): slow checking (mended), or stuck?
            . scripts/gpu/env.sh
            HOROVOD_LOG_LEVEL=debug timeout -s INT -k 5 70 harness comm --device cuda --slots 2 --via horovod --ops all_reduce --min 128M \
                --max 1G --step 2 --budget 0.05 --out "/tmp/results-speed/$(card_name)-x2-comm-large" 2>&1 | tail -n 30 | cut -c1-200
        ) || true
        exec bash scripts/gpu/session_speed.sh 190 h100-x4-small-precision 170 h100-x2-llama-wire
        ;;
    3)
        bash scripts/gpu/install.sh
        exec bash scripts/gpu/session_speed.sh 60 tests 250 h100-x1-7b-compile 200 h100-x1-llama-compile
        ;;
    4)
        # Goes on with the record of another session, where that stopped.
        mkdir -p /tmp/results-fit
        cp -r results/h100-x1-fit /tmp/results-fit/
        bash scripts/gpu/session_fit.sh 400 --workers 1 --study h100-x1-fit
        exec bash scripts/gpu/session_speed.sh 130 overhead
        ;;
    *)
        echo "usage: session_open.sh 1|2|3|4" >&2
        exit 2
        ;;
esac
