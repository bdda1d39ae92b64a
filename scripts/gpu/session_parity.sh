#!/usr/bin/env bash
# fp32 parity of every engine on 2 GPUs, on a machine of 4 whose GPUs have nothing else to do (while weights are brought):
# `session_parity.sh start` trains in the background, half of the engines on each pair of GPUs; `collect` waits at most 90 s
# for them, judges all together and writes the table.
set -uo pipefail
cd "$(dirname "$0")/../.."
. scripts/gpu/env.sh
keep=/tmp/parity results=/tmp/results-speed
sharing=ddp,fsdp2,horovod zero=deepspeed:0,deepspeed:1,deepspeed:2,deepspeed:3

parity() { COLUMNS=150 harness experiment parity --workers 2 --precision fp32 --device cuda "$@" 2>&1; }

case "${1:-}" in
    start)
        [ ! -e "$keep" ] || exit 0
        mkdir -p "$keep"
        for half in "0,1 $sharing" "2,3 $zero"; do
            read -r gpus engines <<<"$half"
            CUDA_VISIBLE_DEVICES=$gpus setsid bash -c "$(declare -f parity); parity --backends $engines --study '' --keep $keep/$gpus; touch $keep/$gpus.ended" \
                >"$keep/$gpus.log" </dev/null &
        done
        ;;
    collect)
        for _ in $(seq 90); do
            [ "$(find "$keep" -name '*.ended' | wc -l)" -lt 2 ] || break
            sleep 1
        done
        mkdir -p "$keep/all"
        cp -rn "$keep"/0,1/. "$keep"/2,3/. "$keep/all/"
        parity --backends "$sharing,$zero" --keep "$keep/all" --resume --results "$results" --study "${STUDY:-$(card_name)-x4-parity}" | tail -n 16
        ;;
    *)
        echo "usage: session_parity.sh start|collect" >&2
        exit 2
        ;;
esac
