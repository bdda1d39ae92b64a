#!/usr/bin/env bash
# Engines on ONE GPU of 139 GiB, within one call, after install.sh: the trained transformer with compiled blocks, then the
# paper's model, with and without padding. `session_engines.sh SECONDS_608M SECONDS_7B`: a duel takes about a minute. More
# contenders do not fit. What is measured is packed into $OUT after each.
set -uo pipefail
cd "$(dirname "$0")/../.."
[ $# -eq 2 ] || { echo "usage: session_engines.sh SECONDS_608M SECONDS_7B" >&2; exit 2; }
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=/tmp/results-engines
mkdir -p "$results" "$OUT"
card=$(card_name)-x$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)
LLAMA=(--preset llama-600m --precision bf16 --global-batch 32 --set loader_workers=2 --device cuda)
SEVEN=(--preset anomalygpt-7b --random-weights --precision bf16 --set model.max_tokens=66 --set loader_workers=2 --device cuda --global-batch 16)

pack() {
    find "$results" -name '*.safetensors' -delete
    tar czf "$OUT/.duel.tar.gz" -C "$results" . && mv "$OUT/.duel.tar.gz" "$OUT/duel.tar.gz"
}
duel() { # NAME LIMIT ENGINES [options]
    local name=$card-$1 limit=$2 engines=$3
    shift 3
    COLUMNS=170 timeout -s INT -k 20 "$limit" python3 -m harness experiment duel --backends "$engines" --study "$name" --results "$results" --duels 4 \
        --until 0.7% --budget "$((limit - 15))s" "$@" >"$OUT/$name.txt" 2>"$OUT/$name.err"
    local code=$?
    if [ -s "$results/$name/duel.md" ]; then cat "$results/$name/duel.md"; fi
    [ $code -eq 0 ] || { echo "duel $name ended with $code:"; tail -n 12 "$OUT/$name.err"; }
    pack
}

duel llama-one-duel "$1" single,ddp,horovod,deepspeed:1,deepspeed:2 "${LLAMA[@]}" --warmup 12 --steps 5 --rounds 8
echo "after $SECONDS s"
duel 7b-one-duel "$2" "single:model.pack_on_gpu=false+model.prefix_on_gpu=false,single,deepspeed:2" "${SEVEN[@]}" --warmup 12 --steps 5 --rounds 8
echo "took $SECONDS s"
