#!/usr/bin/env bash
# One call of a session on two GPUs, after install.sh: the tests that need a GPU, a profile of both ranks of the exchange-heavy
# job on DDP (is a rank bound by its host?), and whether cores of their own make ranks steadier. Records into $OUT.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=/tmp/results-speed
mkdir -p "$results" "$OUT"
python3 -m pytest -q -p no:cacheprovider tests/core_model/test_graphs.py tests/core_model/data/test_ahead.py 2>&1 | tail -n 5
timeout 90 harness run --backend ddp --slots 2 --preset llama-600m --global-batch 32 --precision bf16 --steps 24 --timing-warmup 8 \
    --log-every 8 --loader-workers 2 --eval-samples -1 --set keep_weights=false --set profile=torch --results "$results" \
    --study h100-x2-profile-llama --run-name ddp-w2 2>&1 | tail -n 2
cp "$results"/h100-x2-profile-llama/ddp-w2/profile/*.gz "$OUT/" # to be looked at; too large to keep
rm -rf "$results"/h100-x2-profile-llama/ddp-w2/profile
exec bash scripts/gpu/session_speed.sh "${1:-330}" h100-x2-llama-cores
