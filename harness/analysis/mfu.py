"""The share of a device's arithmetic peak that a run used: by useful FLOPs (MFU; PaLM, App. B), and by all that were
done (hardware utilization). `core_model.execution.flops` says what each counts.

Peaks are dense rates from NVIDIA's data sheets, in FLOP/s: tensor cores with fp32 accumulation for bf16 and fp16, the
plain units for fp32 (torch leaves TF32 off for matrix products). A device that is not listed has no MFU: a wrong guess
is worse than none. So names are matched whole: an L40 is no L4, an H100 PCIe no H100 SXM, and a slice of a card (MIG,
vGPU) or one built for a single customer is none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.common.formatting import is_number

# (the device's whole name after its maker's, as the driver says it; bf16; fp16; fp32). None: it has no such unit.
_PEAKS: tuple[tuple[str, float | None, float | None, float], ...] = (
    ("GB200", 2500e12, 2500e12, 80e12),
    ("B200", 2250e12, 2250e12, 75e12),
    ("GH200 (480GB|144G HBM3e)", 989.4e12, 989.4e12, 66.9e12),
    ("H200", 989.4e12, 989.4e12, 66.9e12),
    ("H200 NVL", 835e12, 835e12, 60e12),
    ("H100 80GB HBM3", 989.4e12, 989.4e12, 66.9e12),
    ("H100 PCIe", 756e12, 756e12, 51.2e12),
    ("H100 NVL", 835e12, 835e12, 60e12),
    ("A100-(SXM4?|PCIE)-[48]0GB|A100 80GB PCIe", 312e12, 312e12, 19.5e12),
    ("A40", 149.7e12, 149.7e12, 37.4e12),
    ("A30", 165e12, 165e12, 10.3e12),
    ("A10", 125e12, 125e12, 31.2e12),
    ("L40S", 362e12, 362e12, 91.6e12),
    ("L40", 181e12, 181e12, 90.5e12),
    ("L4", 121e12, 121e12, 30.3e12),
    ("T4", None, 65e12, 8.1e12),
    ("V100-SXM2-(16|32)GB", None, 125e12, 15.7e12),
    ("V100-PCIE-(16|32)GB", None, 112e12, 14e12),
    ("RTX 6000 Ada Generation", 364.2e12, 364.2e12, 91.1e12),
    ("RTX A6000", 154.8e12, 154.8e12, 38.7e12),
    ("GeForce RTX 4090", 165.2e12, 165.2e12, 82.6e12),
    ("GeForce RTX 3090", 71e12, 71e12, 35.6e12),
)
_MAKER = re.compile(r"(NVIDIA|Tesla)\s+", re.IGNORECASE)


def peak_flops(device: str, precision: str) -> float | None:
    """FLOP/s of one device in `precision`, None where unknown (a V100 has no bf16)."""
    name = _MAKER.sub("", " ".join(device.split()))
    for pattern, bf16, fp16, fp32 in _PEAKS:
        if re.fullmatch(pattern, name, re.IGNORECASE):
            return {"bf16": bf16, "fp16": fp16, "fp32": fp32}.get(precision)
    return None


def utilization(
    kind: str,
    job: Mapping[str, Any],
    result: Mapping[str, Any],
    environment: Mapping[str, Any],
    samples_per_s: float | None,
) -> float | None:
    """Share of its GPUs' peak that a run used, 0 to 1.

    Args:
        kind: ``useful``: only the work that the real tokens need (MFU). ``done``: all that was computed, padding and
            recomputation too (hardware utilization).
        job, result, environment: the run's records. samples_per_s: its total throughput.

    Returns:
        None without a GPU, a known peak, counted FLOPs or a throughput, and where the host has GPUs of several peaks.
    """
    devices = (environment.get("gpus") or {}).get("devices") or []
    flops = (result.get("flops") or {}).get(kind)
    if not devices or job.get("device") == "cpu" or not is_number(flops) or not is_number(samples_per_s):
        return None
    peak, *others = {peak_flops(str(device.get("name")), str(job.get("precision"))) for device in devices}
    if peak is None or others or samples_per_s is None:
        return None
    return flops * samples_per_s / (int(result.get("world_size", 1)) * peak)


def withdrawn(result: Mapping[str, Any]) -> bool:
    """Whether the record's only count of FLOPs charges each sample the longest of eight: it gives no utilization."""
    return "flops" not in result and "flops_per_sample" in (result.get("model") or {})


WITHDRAWN = "MFU withdrawn: counted by the longest sample"
