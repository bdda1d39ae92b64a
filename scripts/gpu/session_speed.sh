#!/usr/bin/env bash
# One call of a session on several GPUs, after install.sh (and, for `small`, all weights and .gpu/data): measurements one after
# another, each with its own limit. Arguments: pairs SECONDS WHAT, where WHAT is a study of harness/studies, or `comm`, `overhead`,
# or `tests` (those that need a GPU). What is measured is packed into $OUT after each: a call that is cut keeps the ones before.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=/tmp/results-speed
mkdir -p "$results" "$OUT"
cards=$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)
card=$(card_name)

pack() {
    rm -rf "$results"/*/*/examples
    find "$results" -name '*.safetensors' -delete
    tar czf "$OUT/.speed.tar.gz" -C "$results" . && mv "$OUT/.speed.tar.gz" "$OUT/speed.tar.gz"
}

while [ $# -ge 2 ]; do
    began=$SECONDS
    case $2 in
        tests)
            timeout "$1" python3 -m pytest -q -p no:cacheprovider tests/core_model/execution/test_graphs.py tests/core_model/execution/test_compiled.py \
                tests/core_model/data/test_ahead.py 2>&1 | tail -n 5
            ;;
        comm)
            timeout -s INT -k 10 "$1" harness experiment collectives --device cuda --slots "$cards" --via nccl,horovod,deepspeed --min 1k --max 1G \
                --step 16 --budget 0.15 --out "$results/$card-x$cards-comm" >"$OUT/$2.txt" 2>&1
            tail -n 30 "$OUT/$2.txt" | cut -c1-160
            ;;
        overhead)
            timeout -s INT -k 10 "$1" harness experiment overhead --workers "$((cards < 2 ? 1 : 2))" --preset llama-600m --precision bf16 --global-batch 32 \
                --steps 160 --backends "${OVERHEAD_ENGINES:-ddp,horovod,deepspeed:2}" --device cuda \
                --results "$results" --study "$card-x$cards-overhead" 2>&1 | tail -n 12
            ;;
        *)
            # A study is named after the card that it was written for; what it is called follows the card that came.
            study=$(mktemp -d)/$2.toml
            sed "s/^name = \"h100-/name = \"$card-/" "harness/studies/$2.toml" >"$study"
            COLUMNS=170 timeout -s INT -k 20 "$1" harness compare "$study" --results "$results" --take-turns >"$OUT/$2.txt" 2>&1
            tail -n "${TAIL:-24}" "$OUT/$2.txt" | cut -c1-170
            ;;
    esac
    echo "--- $2 took $((SECONDS - began)) s"
    pack
    shift 2
done
