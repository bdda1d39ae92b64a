#!/usr/bin/env bash
# One call of a session on two GPUs, after install.sh and all weights, with .gpu/data: the decoder's variants, 12 runs at a
# time (a process of `small` needs up to 12 GB: 18 ran out of 80 GB), so no speed, judged by their decoders. Records into $OUT.
# What both engines train, with their speed: `session_speed.sh 300 real-photographs`.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-/tmp/gpu-out}
. scripts/gpu/env.sh
results=/tmp/results-quality
mkdir -p "$results" "$OUT"
# The decoder's variants, 3 seeds each: the paper's linear layer, the study's (V1; V2; V3 to V6).
number=0
variant() {
    local name=$1 layers=$2 seed
    for seed in 0 1 2; do
        number=$((number + 1))
        CUDA_VISIBLE_DEVICES=$((number % 2)) timeout 280 harness run --backend single --preset small --data mvtec:.gpu/data/mtd \
            --precision bf16 --global-batch 64 --steps 240 --loader-workers 2 --threads 1 --log-every 20 --eval-samples -1 \
            --results "$results" --study mtd-variants --run-name "$name-s$seed" --seed "$seed" --defects realistic \
            --set concurrent=12 --set model.decoder_layers="$layers" --set data_options.holdout=0.2 \
            >"$results/$name-s$seed.out" 2>&1 &
        waited+=("$!")
    done
}
waited=()
variant linear linear
variant v1 linear,norm,dropout,residual
variant v2 linear,dropout,residual
variant v3-v6 linear,batchnorm,dropout,residual
wait "${waited[@]}"
tail -qn 2 "$results"/*.out | cut -c1-200
judge() { # GPU NAME RUN|STUDY... [options]: a quality record of that name
    CUDA_VISIBLE_DEVICES=$1 timeout 230 harness model quality --results "$results" --study "$2" "${@:3}" >"$OUT/$2.txt" 2>&1
    tail -n 12 "$OUT/$2.txt" | cut -c1-250
}
judge 0 mtd-variants "$results/mtd-variants" --shots all --branches decoder
find "$results" -name '*.safetensors' -delete
rm -rf "$results"/*/*/examples # pictures of the data set are not ours to publish
tar czf "$OUT/quality.tar.gz" -C "$results" .
echo "took $SECONDS s"
