#!/usr/bin/env bash
# One call of a session on two GPUs, after install.sh and all weights, with .gpu/data: what both engines train on real
# photographs (6 runs at a time, so no speed), beside the decoder's variants, judged by every branch. Records into $OUT.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=/tmp/results-quality
mkdir -p "$results" "$OUT"
python3 -m pytest -q -p no:cacheprovider tests/core_model/test_graphs.py >"$OUT/graphs.txt" 2>&1 &
COLUMNS=200 timeout -s INT -k 30 "${1:-260}" harness compare --study harness/studies/h100-x2-mtd.toml --results "$results" --concurrent 6 >"$OUT/mtd.txt" 2>&1 &
mtd=$!
# The decoder's variants: the paper's linear layer, the study's (V1; V2; V3 to V6), wider heads, a simpler recipe.
number=0
variant() {
    local name=$1 layers=$2 recipe=$3
    number=$((number + 1))
    CUDA_VISIBLE_DEVICES=$((number % 2)) timeout 240 harness run --backend single --preset small --data mvtec:.gpu/data/mtd \
        --precision bf16 --global-batch 64 --steps 240 --loader-workers 3 --threads 1 --log-every 20 --eval-samples -1 \
        --results "$results" --study mtd-variants --run-name "$name" --defects "$recipe" --set concurrent=6 \
        --set model.decoder_layers="$layers" --set data_options.holdout=0.2 "${@:4}" >"$results/$name.out" 2>&1 &
    waited+=("$!")
}
waited=()
variant linear linear realistic
variant v1 linear,norm,dropout,residual realistic
variant v2 linear,dropout,residual realistic
variant v3-v6 linear,batchnorm,dropout,residual realistic
variant mlp-mixed mlp mixed
variant conv3x3 conv3x3 realistic
wait "${waited[@]}"
tail -qn 2 "$results"/*.out | cut -c1-200
(timeout 170 harness quality "$results/mtd-variants" --shots all --branches decoder --results "$results" --name mtd-variants >"$OUT/variants.txt" 2>&1; tail -n 3 "$OUT/variants.txt") &
variants=$!
wait "$mtd"
tail -n 25 "$OUT/mtd.txt"
CUDA_VISIBLE_DEVICES=1 timeout 200 harness quality "$results/h100-x2-mtd" --memory cosine --memory l2:blocks=1,2:rotations=0 \
    --results "$results" >"$OUT/quality.txt" 2>&1
tail -n 30 "$OUT/quality.txt" | cut -c1-300
wait "$variants"
tail -n 4 "$OUT/graphs.txt"
find "$results" -name '*.safetensors' -delete
rm -rf "$results"/*/*/examples # pictures of the data set are not ours to publish
tar czf "$OUT/quality.tar.gz" -C "$results" .
echo "took $SECONDS s"
