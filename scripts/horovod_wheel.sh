#!/usr/bin/env bash
# Builds Horovod from its released source against the torch of PYTHON and prints the wheel's path on standard output.
#
#   scripts/horovod_wheel.sh PYTHON [--sdist FILE] [--key]
#
# Why from source: Horovod publishes no wheel, and its last release (0.28.1) needs mends to compile against torch >= 2.1:
# a newer C++ than 14, and includes that gcc 13 no longer pulls in by accident (upstream #3957, never released).
# The wheel is stripped of debug symbols (20 MB -> 1 MB), tried, and kept in the user's cache under a name made of all that
# it depends on; a build that is interrupted leaves nothing that looks like a wheel.
#
#   --sdist FILE   use this copy of the released source (its hash is checked) instead of fetching it
#   --key          only print the cache key
set -euo pipefail
{    # read to the end before anything runs: the file may change meanwhile (git pull)
cd "$(dirname "$0")/.."
. scripts/versions.sh
. scripts/lib.sh
LOG=${LOG:-$PWD/.setup.log}

[ $# -ge 1 ] || die "usage: scripts/horovod_wheel.sh PYTHON [--sdist FILE] [--key]"
python=$1 sdist='' only_key=''
shift
while [ $# -gt 0 ]; do
    case $1 in
        --sdist) sdist=$(readlink -f "${2:?--sdist needs a file}"); shift 2 ;;
        --key) only_key=1; shift ;;
        *) die "horovod_wheel.sh: unknown argument $1" ;;
    esac
done

# --- What the wheel depends on ---------------------------------------------------------------------------------------
facts=$("$python" -c 'import sys, platform, torch
print(torch.__version__, "cp%d%d" % sys.version_info[:2], torch.version.cuda or "none", platform.machine())') ||
    die "Horovod is built against torch, and $python has none: run scripts/setup.sh"
read -r torch_version python_tag torch_cuda machine <<<"$facts"
cuda_tag=cpu capability=''
if [ "$torch_cuda" != none ] && has_gpu; then
    capability=$(gpu_capabilities)
    cuda_tag="cu${torch_cuda}-sm${capability//,/-}"
fi
key="horovod-$HOROVOD_VERSION-r$HOROVOD_RECIPE-torch$torch_version-$python_tag-$cuda_tag-$machine"
if [ -n "$only_key" ]; then printf '%s\n' "$key"; exit 0; fi

cache=$(cache_dir)/horovod
mkdir -p "$cache"
# Two set-ups at once: the second waits for the first's wheel.
exec 9>"$cache/.$key.lock"
flock -w 3600 9 || die "another build of $key holds $cache/.$key.lock for an hour; end it and run this again"
found() { find "$cache/$key" -name 'horovod-*.whl' 2>/dev/null | head -n 1; }
if [ -n "$(found)" ]; then found; exit 0; fi

build=$cache/.build-$(sha256sum <<<"$key" | cut -c1-12)
rm -rf "$build".*                      # left by a run that was killed; the lock says that it is gone
work=$(mktemp -d "$build.XXXXXX")
trap 'rm -rf "$work"' EXIT

# --- The source, with its mends --------------------------------------------------------------------------------------
if [ -z "$sdist" ]; then
    printf 'horovod==%s --hash=sha256:%s\n' "$HOROVOD_VERSION" "$HOROVOD_SHA256" >"$work/source.txt"
    step "fetching Horovod $HOROVOD_VERSION's source" limit 600 "$python" -m pip download -q --retries 5 --timeout 60 \
        --no-deps --no-binary :all: --no-build-isolation --require-hashes -r "$work/source.txt" -d "$work"
    sdist=$(find "$work" -maxdepth 1 -name 'horovod-*.tar.gz')
fi
echo "$HOROVOD_SHA256  $sdist" | sha256sum --check --quiet >&2 || die "$sdist is not Horovod $HOROVOD_VERSION as it was released"
tar xzf "$sdist" -C "$work"
source=$work/horovod-$HOROVOD_VERSION
# torch's headers ask for C++17, from 2.14 on for C++20.
standard=17
[ "$(printf '2.14\n%s\n' "$torch_version" | sort -V | head -n 1)" != 2.14 ] || standard=20
sed -i -E "s/CXX_STANDARD (11|14)/CXX_STANDARD $standard/" "$source/CMakeLists.txt" "$source/horovod/torch/CMakeLists.txt"
# It takes the build's path for a regular expression: with a + in it (torch2.13.0+cpu, say) the torch module ends up elsewhere.
sed -i 's|string(REGEX REPLACE "${PROJECT_SOURCE_DIR}(/)?" "" SUB_FOLDER "${CMAKE_CURRENT_SOURCE_DIR}")|file(RELATIVE_PATH SUB_FOLDER "${PROJECT_SOURCE_DIR}" "${CMAKE_CURRENT_SOURCE_DIR}")|' "$source/cmake/Utilities.cmake"
grep -q RELATIVE_PATH "$source/cmake/Utilities.cmake" || die "Horovod's cmake/Utilities.cmake is not as expected: mend scripts/horovod_wheel.sh"
# Debug symbols are stripped below: not making them saves 40 % of the compiler's time. The optimization stays Horovod's own.
sed -i "s/cmake_args = \['-DCMAKE_BUILD_TYPE=' + config,/&\n                      '-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -DNDEBUG',/" \
    "$source/setup.py"
export CXXFLAGS="-include string -include cstdint -include stdexcept -include functional -include memory -include mutex"

# --- The build -------------------------------------------------------------------------------------------------------
export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1
export CMAKE_POLICY_VERSION_MINIMUM=3.5      # the bundled gloo asks for an older CMake than CMake 4 accepts
# A compiler process takes up to 1.5 GiB here: as many as the cores and the free memory carry.
cores=$(nproc)
by_memory=$(awk '/^MemAvailable/ {print int($2 / 1572864)}' /proc/meminfo)
jobs=$((by_memory < cores ? by_memory : cores))
export MAKEFLAGS="-j$((jobs < 1 ? 1 : jobs))"

if [ "$cuda_tag" = cpu ]; then
    # A CUDA build of torch (what the package index serves by default) on a machine without GPU: take it as it will run there,
    # as a CPU torch, and never the CUDA toolkit, which may be absent or of another version.
    sed -i 's/print(True if ((torch.version.cuda is not None) and (CUDA_HOME is not None)) else False)/print(False)/' \
        "$source/cmake/Modules/FindPytorch.cmake"
    grep -q 'import CUDA_HOME; print(False)' "$source/cmake/Modules/FindPytorch.cmake" ||
        die "Horovod's FindPytorch.cmake is not as expected: mend scripts/horovod_wheel.sh"
else
    cuda_home=${CUDA_HOME:-/usr/local/cuda}
    [ -x "$cuda_home/bin/nvcc" ] || ! have nvcc || cuda_home=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
    [ -x "$cuda_home/bin/nvcc" ] || die "no CUDA compiler found for the GPU build: install the CUDA $torch_cuda toolkit or set CUDA_HOME"
    # The NCCL that torch itself loads, so that one process never holds two; else the system's.
    nccl=$("$python" -c 'import nvidia.nccl as n; print(list(n.__path__)[0])' 2>/dev/null || true)
    mkdir -p "$work/nccl/lib"
    if [ -n "$nccl" ]; then
        ln -s "$nccl/include" "$work/nccl/include"
        ln -s "$nccl/lib/libnccl.so.2" "$work/nccl/lib/libnccl.so"
        ln -s "$nccl/lib/libnccl.so.2" "$work/nccl/lib/libnccl.so.2"
    elif [ -e /usr/include/nccl.h ]; then
        ln -s /usr/include "$work/nccl/include"
        library=$(ldconfig -p | awk '/libnccl.so.2 / {print $NF; exit}')
        ln -s "${library:?libnccl.so.2 not found}" "$work/nccl/lib/libnccl.so"
    else
        die "no NCCL found: install the nvidia-nccl package of torch's CUDA version, or libnccl-dev"
    fi
    export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED HOROVOD_NCCL_HOME=$work/nccl
    export HOROVOD_CUDA_HOME=$cuda_home HOROVOD_BUILD_CUDA_CC_LIST=$capability
fi
# No build isolation: it must be compiled against this very torch.
step "compiling Horovod ($cuda_tag, torch $torch_version; about 3 minutes on 2 cores)" limit 3000 \
    "$python" -m pip wheel -q --no-build-isolation --no-deps --no-cache-dir "$source" -w "$work/raw"

# --- Strip, try, keep ------------------------------------------------------------------------------------------------
mkdir -p "$work/keep"
"$python" -m wheel unpack "$work"/raw/horovod-*.whl -d "$work/unpacked" >>"$LOG"
tree=$(find "$work/unpacked" -mindepth 1 -maxdepth 1)
find "$tree" -name '*.so' -exec strip --strip-debug {} +
# A GPU build loads only where the GPU's driver is: one made for other machines is kept untried.
if [ "$cuda_tag" = cpu ] || gpu_answers; then
    (cd "$work" && PYTHONPATH=$tree${PYTHONPATH:+:$PYTHONPATH} limit 300 "$python" -c '
import sys
import horovod.torch as hvd
assert hvd.mpi_built() and hvd.gloo_built(), "built without MPI or gloo"
assert sys.argv[1] == "cpu" or hvd.nccl_built(), "built without NCCL"' "$cuda_tag") >&2 ||
        die "the Horovod just built does not load (log: $LOG)"
fi
"$python" -m wheel pack "$tree" -d "$work/keep" >>"$LOG"
# The rename is the moment it becomes visible: complete or not there.
mv -T "$work/keep" "$cache/$key"
found
exit
}
