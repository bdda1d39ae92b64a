# The environment of a GPU machine prepared by scripts/gpu/install.sh. Source it: `. scripts/gpu/env.sh`
# shellcheck shell=bash
export GPU_SITE=${GPU_SITE:-/tmp/site}
export PYTHONPATH=$GPU_SITE:$PWD${PYTHONPATH:+:$PYTHONPATH}
export PATH=$GPU_SITE/bin:$PATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$GPU_SITE/.cache}
# DeepSpeed's fused operators are compiled at first use, for this GPU alone.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$GPU_SITE/torch_extensions}
[ -n "${TORCH_CUDA_ARCH_LIST:-}" ] || TORCH_CUDA_ARCH_LIST=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd";" || true)
export TORCH_CUDA_ARCH_LIST
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
# Open MPI refuses root otherwise; such machines often run everything as root.
if [ "$(id -u)" -eq 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

# card_name: what studies of this machine's first GPU are named after, such as h100.
card_name() {
    local name
    name=$(nvidia-smi --query-gpu=name --format=csv,noheader | sed -n '1s/^NVIDIA \([A-Z]*[0-9]*\).*/\L\1/p')
    echo "${name:-gpu}"
}
