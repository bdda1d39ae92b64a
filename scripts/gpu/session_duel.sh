#!/usr/bin/env bash
# One duel study on the GPUs of one host, within one call: `session_duel.sh NAME ENGINES [harness experiment duel options]`, after
# install.sh. The folder is called CARD-xCARDS-NAME after the card that came; what is measured is kept after each duel.
set -uo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 2 ] || { echo "usage: session_duel.sh NAME ENGINES [harness experiment duel options]" >&2; exit 2; }
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=/tmp/results-duel
mkdir -p "$results" "$OUT"
cards=$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)
study=$(card_name)-x$cards-$1
engines=$2
shift 2
COLUMNS=170 timeout -s INT -k 20 560 harness experiment duel --backends "$engines" --study "$study" --results "$results" --device cuda "$@" \
    >"$OUT/$study.txt" 2>&1
code=$?
tail -n 40 "$OUT/$study.txt"
tar czf "$OUT/duel.tar.gz" -C "$results" .
exit $code
