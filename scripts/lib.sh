# Small helpers shared by the scripts: messages, steps with a log, time limits, what the machine has. Sourced, never run.
# shellcheck shell=bash

say() { printf '==> %s\n' "$*" >&2; }
# No silent end: whatever stops a script under `set -e` is named. Code 2 is `die`, which has spoken already.
trap 'code=$?; [ $code -eq 2 ] || printf "error: %s, line %s, ended with exit code %s\n" "$0" "$LINENO" "$code" >&2' ERR
die() { printf 'error: %s\n' "$*" >&2; exit 2; }
have() { command -v "$1" >/dev/null 2>&1; }

# step TEXT COMMAND...: runs the command with its output in $LOG, says how long it took; on failure shows the log's end.
step() {
    local text=$1 started=$SECONDS code=0
    shift
    printf '==> %s ...\n' "$text" >&2
    printf '\n### %s: %s\n' "$text" "$*" >>"$LOG"
    # 8 and 9 are the scripts' locks: a service that a package starts must not inherit them.
    "$@" >>"$LOG" 2>&1 </dev/null 8>&- 9>&- || code=$?
    if [ "$code" -ne 0 ]; then
        tail -n 25 "$LOG" >&2
        [ "$code" -ne 124 ] || die "$text: no end after its time limit (whole log: $LOG); run it again, it goes on where it was"
        die "$text: failed with exit code $code (whole log: $LOG)"
    fi
    printf '    %s: %d s\n' "$text" "$((SECONDS - started))" >&2
}

# limit SECONDS COMMAND...: ends it after that time (code 124). In the foreground, so that Ctrl-C reaches the command too.
limit() { timeout --foreground --kill-after=30 "$@"; }

# cache_dir: where built wheels are kept between clones.
cache_dir() { printf '%s/anomaly-distbench\n' "${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}"; }

# python_ok PYTHON: it runs and is of a supported version. (A name in PATH may be a shim that only prints an error.)
python_ok() {
    "$1" - "$PYTHON_MINIMUM" "$PYTHON_BELOW" 2>/dev/null <<'PY'
import sys
low, high = (tuple(map(int, text.split("."))) for text in sys.argv[1:])
sys.exit(not low <= sys.version_info[:2] < high)
PY
}

# find_python: prints the first usable interpreter: $PYTHON alone if set, else the machine's own python3, else by name.
# Inside an activated environment it is the interpreter that the environment was made from.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 /usr/bin/python3}; do
        if python_ok "$candidate"; then
            "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'
            return
        fi
    done
    return 1
}

# gpu_answers: an NVIDIA GPU is in this machine and works. (Bounded: nvidia-smi hangs on a sick driver.)
gpu_answers() { have nvidia-smi && [[ $(limit 30 nvidia-smi -L 2>/dev/null) == GPU\ * ]]; }

# has_gpu: the set-up is for GPUs: one answers, or GPU_CAPABILITIES names those of the machine that this one builds for.
has_gpu() { [ -n "${GPU_CAPABILITIES:-}" ] || gpu_answers; }

# gpu_capabilities: prints compute capabilities without dots: 90, or 80,90 for several kinds of GPU.
gpu_capabilities() {
    if [ -n "${GPU_CAPABILITIES:-}" ]; then tr ', ' '\n\n' <<<"$GPU_CAPABILITIES"
    else nvidia-smi --query-gpu=compute_cap --format=csv,noheader; fi | tr -d '. ' | sed '/^$/d' | sort -un | paste -sd,
}

# gpu_torch PYTHON: prints the version of an installed CUDA torch that is new enough, or fails.
gpu_torch() {
    limit 120 "$1" - "$TORCH_MINIMUM" 2>/dev/null <<'PY'
import sys
import torch
low = tuple(map(int, sys.argv[1].split(".")))
version = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2]))
if version < low or torch.version.cuda is None:
    sys.exit(1)
print(torch.__version__)
PY
}
