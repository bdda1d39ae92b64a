#!/usr/bin/env bash
# The last call of a session on two GPUs, after install.sh and all weights: studies on real photographs, records into $OUT.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=/tmp/results
mkdir -p "$results" "$OUT"
limit=${1:-540}
study=${2:-harness/studies/h100-x2-mtd.toml}
COLUMNS=200 timeout -s INT -k 30 "$limit" harness compare --study "$study" --results "$results" "${@:3}" 2>&1 | tail -n 60
find "$results" -name '*.safetensors' -delete
tar czf "$OUT/results.tar.gz" -C "$results" .
ls -la "$OUT"
