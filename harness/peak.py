"""Model FLOPs utilization: the share of a device's arithmetic peak that the model's own FLOPs use (PaLM, App. B).

Peaks are dense rates from NVIDIA's data sheets, in FLOP/s: tensor cores with fp32 accumulation for bf16 and fp16, the
plain units for fp32 (torch leaves TF32 off for matrix products). A device that is not listed has no MFU: a wrong guess
is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import words

# (part of the device's name, bf16 and fp16, fp32); the first match counts.
_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("H100 PCIe", 756e12, 51.2e12),
    ("H100 NVL", 835e12, 60e12),
    ("H200", 989.4e12, 66.9e12),
    ("H100", 989.4e12, 66.9e12),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L4", 121e12, 30.3e12),
    ("V100", 125e12, 15.7e12),
)


def peak_flops(device: str, precision: str) -> float | None:
    """FLOP/s of one device in `precision`, None where unknown (V100 has no bf16)."""
    for name, half, full in _PEAKS:
        if name in device:
            if precision == "fp32":
                return full
            return None if name == "V100" and precision == "bf16" else half
    return None


def mfu(
    job: Mapping[str, Any], result: Mapping[str, Any], environment: Mapping[str, Any], samples_per_s: float | None
) -> float | None:
    """MFU of a run on GPUs, 0 to 1; None without a GPU, a known peak, counted FLOPs or a throughput."""
    devices = (environment.get("gpus") or {}).get("devices") or []
    flops = ((result.get("model") or {}).get("flops_per_sample") or {}).get("total")
    if not devices or job.get("device") == "cpu" or not words.is_number(flops) or not words.is_number(samples_per_s):
        return None
    peak = peak_flops(str(devices[0].get("name")), str(job.get("precision")))
    if peak is None or samples_per_s is None:
        return None
    return flops * samples_per_s / (int(result.get("world_size", 1)) * peak)
