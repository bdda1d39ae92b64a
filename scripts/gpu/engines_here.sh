#!/usr/bin/env bash
# Builds both engines for a GPU machine on this one, which needs no GPU but CUDA's compiler (nvcc) and the target's Python: there
# it takes minutes of a machine that is paid for by the minute. Puts the wheels into .gpu/base, where prepare_wheels.sh and
# install.sh find them. About 7 minutes on 2 cores, after 3 GB of downloads.
#
#   TARGET_PYTHON=3.12 TARGET_TORCH=2.11.0 GPU_CAPABILITIES=90 bash scripts/gpu/engines_here.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/lib.sh
export LOG=$PWD/.setup.log
export GPU_CAPABILITIES=${GPU_CAPABILITIES:-90}
python_version=${TARGET_PYTHON:-3.12} torch=${TARGET_TORCH:-2.11.0}
python=''
for candidate in "python$python_version" "${PYENV_ROOT:-/nowhere}"/versions/"$python_version".*/bin/python3; do
    if have "$candidate" && "$candidate" -c 'import venv' 2>/dev/null; then python=$candidate; fi
done
[ -n "$python" ] || die "no Python $python_version here: install it, or build on the GPU machine (install.sh does)"
# nvcc may be a wrapper: CUDA's folder is where its headers are.
for folder in "${CUDA_HOME:-}" /usr/local/cuda "$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /nowhere/bin/nvcc)")")")"; do
    if [ -n "$folder" ] && [ -e "$folder/include/cuda.h" ]; then export CUDA_HOME=$folder; break; fi
done
[ -e "${CUDA_HOME:-/nowhere}/include/cuda.h" ] || die "no CUDA toolkit here: set CUDA_HOME, or build on the GPU machine (install.sh does)"
work=$(cache_dir)/gpu-build-$python_version-$torch
if [ ! -e "$work/.done" ]; then
    rm -rf "$work"
    step "making an environment with Python $python_version" "$python" -m venv "$work"
    step "installing torch $torch with CUDA (3 GB)" limit 1800 "$work/bin/python" -m pip install -q --retries 5 \
        "torch==$torch" setuptools wheel packaging cffi cloudpickle psutil pyyaml cmake ninja numpy
    touch "$work/.done"
fi
mkdir -p .gpu/base
wheel=$(bash scripts/horovod_wheel.sh "$work/bin/python" | tail -n 1)
rm -f .gpu/base/horovod-*
cp "$wheel" .gpu/base/
say "$(basename "$wheel") for torch $torch, CUDA capability $GPU_CAPABILITIES, is in .gpu/base"

# DeepSpeed compiles its optimizer at first use, a minute in which GPUs wait. Its wheel can hold the one for GPUs (the one for
# processors is made for the processor at hand, so it stays to be compiled there).
version=$(sed -n 's/^deepspeed==//p' constraints.txt)
built=$(cache_dir)/deepspeed-$version-$python_version-$torch-$GPU_CAPABILITIES
if ! ls "$built"/deepspeed-*.whl >/dev/null 2>&1; then
    step "installing what DeepSpeed's build imports" limit 600 "$work/bin/python" -m pip install -q --retries 5 \
        hjson py-cpuinfo pydantic tqdm msgpack einops
    capabilities=$(sed -E 's/([0-9])(;|$)/.\1\2/g' <<<"$GPU_CAPABILITIES")
    DS_BUILD_OPS=0 DS_BUILD_FUSED_ADAM=1 TORCH_CUDA_ARCH_LIST=$capabilities step "building DeepSpeed with its optimizer (2 minutes)" \
        limit 1800 "$work/bin/python" -m pip wheel -q --no-cache-dir --retries 5 --no-deps --no-build-isolation "deepspeed==$version" -w "$built"
fi
rm -f .gpu/base/deepspeed-*
cp "$built"/deepspeed-*.whl .gpu/base/
say "$(basename "$(ls .gpu/base/deepspeed-*.whl)") with FusedAdam is in .gpu/base"
