#!/usr/bin/env bash
# What no session has measured yet, in calls of less than 600 s, each kind of machine with its own: on one GPU
# `session_open.sh one`, `one-fit`; on several of one host `session_open.sh several`, `several-fit`. The first call on a machine carries
# .gpu/base.
set -euo pipefail
cd "$(dirname "$0")/../.."
# fit_on NAME WORKERS SECONDS: goes on with the record of another session, where that stopped.
fit_on() {
    mkdir -p /tmp/results-fit
    [ -d "/tmp/results-fit/$1" ] || cp -r "results/$1" /tmp/results-fit/
    exec bash scripts/gpu/session_fit.sh "$3" --workers "$2" --study "$1"
}
case "${1:-}" in
    one)
        bash scripts/gpu/install.sh
        # DDP compiled as the other engines are (results/h100-x1-llama-compile/notes.md), and DeepSpeed's overhead.
        OVERHEAD_ENGINES=deepspeed:2 exec bash scripts/gpu/session_speed.sh 200 compile-llama 120 overhead
        ;;
    one-fit) fit_on h100-x1-fit 1 560 ;;
    several)
        bash scripts/gpu/install.sh
        exec bash scripts/gpu/session_speed.sh 250 "bind-cores --workers 4"
        ;;
    several-fit) fit_on h100-x2-fit 2 560 ;;
    *)
        echo "usage: session_open.sh one|one-fit|several|several-fit" >&2
        exit 2
        ;;
esac
