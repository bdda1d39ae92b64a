#!/usr/bin/env bash
# The largest model of each engine setting on the GPUs of one host, in as many calls as it takes on the SAME warm machine
# (after install.sh): `session_fit.sh [SECONDS] [harness experiment max-model options]`. Each call goes on where the last one ended.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=/tmp/results-fit
mkdir -p "$results" "$OUT"
limit=${1:-540}
shift || true
# Two workers first: what one GPU trains can be had anywhere. A try takes about 20 s, a cell two to four tries.
COLUMNS=170 timeout -s INT -k 20 $((limit + 20)) harness experiment max-model --study "$(card_name)-x2-fit" --workers 2,1 \
    --time-limit 2m --budget "$limit" --results "$results" "$@" 2>&1 | tee "$OUT/fit.txt" | tail -n 80
rm -f "$results"/*/log.txt
tar czf "$OUT/fit.tar.gz" -C "$results" .
