#!/usr/bin/env bash
# One call of a session on several GPUs, after install.sh (and, for `small`, all weights and .gpu/data): studies of speed,
# one after another, each with its own limit. Arguments: pairs SECONDS STUDY; "comm" as a study runs `harness comm`.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=/tmp/results-speed
mkdir -p "$results" "$OUT"
while [ $# -ge 2 ]; do
    began=$SECONDS
    if [ "$2" = comm ]; then
        timeout -s INT -k 10 "$1" harness comm --device cuda --slots 2 --via nccl,horovod,deepspeed --min 1k --max 1G --step 16 --budget 0.15 \
            --out "$results/h100-x2-comm" 2>&1 | tail -n 40 | cut -c1-160
    else
        study=harness/studies/$2.toml
        COLUMNS=170 timeout -s INT -k 20 "$1" harness compare --study "$study" --results "$results" --take-turns >"$OUT/$2.txt" 2>&1
        tail -n 32 "$OUT/$2.txt"
    fi
    echo "--- $2 took $((SECONDS - began)) s"
    shift 2
done
rm -rf "$results"/*/*/examples
find "$results" -name '*.safetensors' -delete
tar czf "$OUT/speed.tar.gz" -C "$results" .
