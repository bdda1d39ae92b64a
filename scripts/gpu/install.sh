#!/usr/bin/env bash
# Runs on the GPU machine (no network there): installs what scripts/gpu/prepare_wheels.sh gathered into $GPU_SITE (/tmp/site),
# builds Horovod with NCCL unless a wheel of it was carried, and leaves that wheel under $OUT so that later calls can carry it.
# A second call on the same machine does nothing that is done.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/versions.sh
. scripts/lib.sh
. scripts/gpu/env.sh
export LOG=${LOG:-$GPU_SITE/install.log}
mkdir -p "$GPU_SITE/bin"
base=.gpu/base
[ -d "$base" ] || die "$base is not here: run scripts/gpu/prepare_wheels.sh where there is a network, and carry .gpu/base"
python=$(command -v python3)
has_gpu || die "nvidia-smi shows no GPU here"
gpu_torch "$python" >/dev/null || die "$python has no CUDA torch >= $TORCH_MINIMUM"

# mine FILE...: installs these wheels into the site folder and nothing else.
mine() {
    limit 600 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --upgrade --target "$GPU_SITE" "$@"
}
if [ ! -e "$GPU_SITE/.wheels-done" ]; then
    horovod=$(find "$base" -name 'horovod-*.whl' | head -n 1)
    if [ -z "$horovod" ]; then
        sdist=$(find "$base" -name 'horovod-*.tar.gz' | head -n 1)
        # The build needs the small wheels (cffi), so these are installed first, and once more below.
        mapfile -t wheels < <(find "$base" -name '*.whl')
        step "installing what the build needs" mine "${wheels[@]}"
        horovod=$(bash scripts/horovod_wheel.sh "$python" --sdist "${sdist:?neither a wheel nor the source of Horovod in $base}" | tail -n 1)
        if [ -n "${OUT:-}" ]; then cp "$horovod" "$OUT/"; fi
    fi
    # In one call: with --target, pip replaces the whole bin folder of an earlier call.
    mapfile -t wheels < <(find "$base" -name '*.whl' ! -name 'horovod-*')
    step "installing $((${#wheels[@]} + 1)) wheels" mine "${wheels[@]}" "$horovod"
    touch "$GPU_SITE/.wheels-done"
fi

# The command line, without an editable install.
cat >"$GPU_SITE/bin/harness" <<'SH'
#!/bin/sh
exec python3 -c 'import sys; from harness.cli import main; sys.exit(main())' "$@"
SH
chmod +x "$GPU_SITE/bin/harness"

limit 300 "$python" - <<'PY'
import deepspeed
import horovod.torch as hvd
import mpi4py
import torch
import transformers

assert hvd.nccl_built() and hvd.mpi_built() and hvd.gloo_built(), "this Horovod lacks NCCL, MPI or gloo"
names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
print("torch", torch.__version__, "cuda", torch.version.cuda, "nccl", torch.cuda.nccl.version(), "deepspeed", deepspeed.__version__,
      "transformers", transformers.__version__, "mpi4py", mpi4py.__version__, "|", names)
PY
say "ready after $SECONDS s; begin later commands with: . scripts/gpu/env.sh"
