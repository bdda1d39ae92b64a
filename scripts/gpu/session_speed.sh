#!/usr/bin/env bash
# One call of a session on several GPUs, after install.sh (and, for `small`, all weights and .gpu/data): measurements one after
# another, each with its own limit. Arguments: pairs SECONDS WHAT. WHAT is a shipped study with options of `harness compare`, such as
# "scaling-llama --workers 4,1,2", or `comm`, `overhead`, or `tests` (those that need a GPU). The folder in results/ is called
# CARD-xCARDS-STUDY, or by --study NAME CARD-xCARDS-NAME. What is measured is packed into $OUT after each: a call that is cut keeps
# the ones before.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=${RESULTS:-/tmp/results-speed}
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
                --step 16 --budget 0.15 --results "$results" --study "$card-x$cards-comm" >"$OUT/$2.txt" 2>&1
            tail -n 30 "$OUT/$2.txt" | cut -c1-160
            ;;
        overhead)
            timeout -s INT -k 10 "$1" harness experiment overhead --workers "$((cards < 2 ? 1 : 2))" --preset llama-600m --precision bf16 --global-batch 32 \
                --steps 160 --backends "${OVERHEAD_ENGINES:-ddp,horovod,deepspeed:2}" --device cuda \
                --results "$results" --study "$card-x$cards-overhead" 2>&1 | tail -n 12
            ;;
        *)
            read -ra words <<<"$2"
            name=${words[0]} options=()
            for ((place = 1; place < ${#words[@]}; place++)); do
                if [ "${words[place]}" = --study ]; then place=$((place + 1)) name=${words[place]}; else options+=("${words[place]}"); fi
            done
            name=$card-x$cards-$name
            COLUMNS=170 timeout -s INT -k 20 "$1" harness compare "${words[0]}" "${options[@]}" --study "$name" --results "$results" \
                --take-turns >"$OUT/$name.txt" 2>&1
            tail -n "${TAIL:-24}" "$OUT/$name.txt" | cut -c1-170
            ;;
    esac
    echo "--- $2 took $((SECONDS - began)) s"
    pack
    shift 2
done
