#!/usr/bin/env bash
# What the model's own settings win on one GPU, by duels of plain torch against itself: `session_core.sh SECONDS WHAT [SECONDS WHAT ...]`
# in one call that carries .gpu/base (of which only the small wheels are needed: no engine but `single` is used).
#
#   tests         what needs a GPU: attention over rows of samples, CUDA graphs, compiled blocks
#   7b            the paper's model: as it was, without padding, and with joined and compiled blocks besides
#   7b-parts      which part of that wins what
#   7b-rows       milliseconds of a pass over rows of several lengths
#   7b-batch      micro-batches of 32 and 64
#   608m          the trained transformer: plain, compiled, with the fused loss and the half-precision stream besides
#   608m-parts    which part of that wins what
#   profile       where a step of both goes that is left
#   small         the preset of real pictures: the same settings
#
# Each has its own limit; what is measured is packed into $OUT after each, so a call that is cut keeps the ones before.
set -uo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 2 ] || { echo "usage: session_core.sh SECONDS WHAT [SECONDS WHAT ...]; WHAT: tests 7b 7b-parts 7b-rows 7b-batch 608m 608m-parts profile small" >&2; exit 2; }
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=/tmp/results-core
mkdir -p "$results" "$OUT" "$GPU_SITE"
card=$(card_name)

if ! python3 -c 'import pydantic, jsonschema' 2>/dev/null; then
    mapfile -t wheels < <(find .gpu/base -name '*.whl' ! -name 'horovod-*' ! -name 'deepspeed-*')
    timeout 120 python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --target "$GPU_SITE" "${wheels[@]}" || { echo "no wheels in .gpu/base: run scripts/gpu/prepare_wheels.sh first" >&2; exit 2; }
fi

PLAIN=single:compile=false+model.loss=plain # as it was before both became what a GPU gets
PADDED=model.pack_on_gpu=false+model.prefix_on_gpu=false
ROWS=model.pack_on_gpu=true+model.prefix_on_gpu=true
SEVEN=(--preset anomalygpt-7b --random-weights --precision bf16 --set model.max_tokens=66 --set loader_workers=4 --device cuda)
LLAMA=(--preset llama-600m --precision bf16 --global-batch 32 --set loader_workers=2 --device cuda)

pack() {
    rm -rf "$results"/*/*/examples
    find "$results" \( -name '*.safetensors' -o -name '*.json.gz' \) -delete
    tar czf "$OUT/.core.tar.gz" -C "$results" . && mv "$OUT/.core.tar.gz" "$OUT/core.tar.gz"
}

# duel NAME LIMIT DUELS ENGINES [options]: its tables are printed whole, the log is kept.
duel() {
    local name=$card-x1-$1 limit=$2 duels=$3 engines=$4
    shift 4
    COLUMNS=200 timeout -s INT -k 20 "$limit" python3 -m harness experiment duel --backends "$engines" --study "$name" --results "$results" \
        --warmup 15 --steps 5 --rounds 8 --duels "$duels" --until 0.5% --budget "${limit}s" "$@" >"$OUT/$name.txt" 2>"$OUT/$name.err"
    local code=$?
    if [ -s "$results/$name/duel.md" ]; then cat "$results/$name/duel.md"; fi
    [ $code -eq 0 ] || { echo "duel $name ended with $code:"; tail -n 6 "$OUT/$name.err"; }
    [ -s "$results/$name/duel.md" ]
}

# run NAME LIMIT [options]: one whole run; its last lines.
run() {
    local name=$1 limit=$2
    shift 2
    timeout -s INT -k 20 "$limit" python3 -m harness run --backend single --study "$card-x1-core" --run-name "$name" --results "$results" \
        --eval-samples -1 --no-keep-weights "$@" 2>&1 | tail -n 4 | cut -c1-200
}

while [ $# -ge 2 ]; do
    began=$SECONDS
    echo "=== $2"
    case $2 in
        tests)
            (cd tests/core_model && timeout "$1" python3 -m pytest -q -p no:cacheprovider language/test_ragged.py language/test_token_loss.py \
                execution/test_graphs.py execution/test_graphs_state.py execution/test_joined.py execution/test_compiled.py) 2>&1 | tail -n 40
            ;;
        7b)
            duel 7b-core "$1" 4 "single:$PADDED,single:$ROWS,single:$ROWS+model.join_frozen=true+compile=true" --global-batch 16 "${SEVEN[@]}" ||
                duel 7b-core-padded "$1" 4 "single:$PADDED,single:$PADDED+compile=true,single:$PADDED+model.join_frozen=true+compile=true" --global-batch 16 "${SEVEN[@]}"
            ;;
        7b-parts)
            duel 7b-parts "$1" 2 "single:model.prefix_on_gpu=false,single:$ROWS,single:$ROWS+model.join_frozen=true" --global-batch 16 "${SEVEN[@]}"
            ;;
        7b-rows) timeout "$1" python3 scripts/gpu/row_times.py 2>&1 | tee "$OUT/7b-rows.txt" | tail -n 30 ;;
        7b-batch)
            for batch in 32 64; do
                run "rows-$batch" $(($1 / 2)) "${SEVEN[@]}" --global-batch "$batch" --steps 30 --timing-warmup 15 --compile --set model.pack_on_gpu=true \
                    --set model.prefix_on_gpu=true --set model.join_frozen=true
            done
            ;;
        608m)
            duel 608m-core "$1" 4 "$PLAIN,single,single:model.residual=autocast" "${LLAMA[@]}"
            ;;
        608m-parts)
            duel 608m-parts "$1" 2 "single:model.loss=plain,single,single:compile=false" "${LLAMA[@]}"
            ;;
        profile)
            run profile-7b $(($1 / 2)) "${SEVEN[@]}" --global-batch 16 --steps 24 --timing-warmup 15 --profile torch --compile \
                --set model.pack_on_gpu=true --set model.prefix_on_gpu=true --set model.join_frozen=true
            run profile-608m $(($1 / 2)) "${LLAMA[@]}" --steps 24 --timing-warmup 15 --profile torch --compile --set model.loss=fused
            ;;
        small)
            duel small-core "$1" 2 "single,single:$ROWS+model.join_frozen=true,single:$ROWS+model.join_frozen=true+compile=true" \
                --preset small --random-weights --precision bf16 --global-batch 64 --set loader_workers=8 --device cuda
            ;;
        *)
            echo "session_core.sh: no $2 here" >&2
            exit 2
            ;;
    esac
    echo "--- $2 took $((SECONDS - began)) s"
    pack
    shift 2
done
exit 0
