#!/usr/bin/env bash
# First call on a GPU machine: installs, then tries every engine in every precision on one and two GPUs, briefly.
# Needs .gpu/base. Everything that is worth reading comes back in $OUT/smoke.tar.gz and on the screen.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-/tmp/gpu-out}
mkdir -p "$OUT"
bash scripts/gpu/install.sh || exit
. scripts/gpu/env.sh
results=/tmp/smoke-results
mkdir -p "$results"
nvidia-smi topo -m | head -8
try() {
    local began=$SECONDS
    timeout -k 5 "$1" "${@:2}" >"$results/last.log" 2>&1
    local code=$?
    echo "--- $(basename "$2") ${*:3} -> exit $code after $((SECONDS - began)) s"
    tail -n "${TAIL:-4}" "$results/last.log" | cut -c1-300
}
COLUMNS=160 TAIL=60 try 200 harness experiment parity --backends ddp,fsdp2,horovod,deepspeed:0,deepspeed:1,deepspeed:2,deepspeed:3 --workers 1,2 \
    --precision fp32,bf16,fp16 --steps 20 --results "$results" --device cuda --keep "$results/cells"
speed=(--results "$results" --eval-samples -1 --set keep_weights=false --steps 12 --timing-warmup 4 --log-every 4 --precision bf16 --slots 2)
try 60 harness run --backend horovod --preset llama-600m --global-batch 32 "${speed[@]}"
try 60 harness run --backend deepspeed --zero-stage 1 --preset llama-600m --global-batch 32 "${speed[@]}"
try 90 harness run --backend ddp --preset anomalygpt-7b --random-weights --global-batch 4 "${speed[@]}"
try 90 harness run --backend deepspeed --zero-stage 2 --preset anomalygpt-7b --random-weights --global-batch 4 "${speed[@]}"
rm -f "$results"/cells/*.safetensors
tar czf "$OUT/smoke.tar.gz" -C "$results" .
