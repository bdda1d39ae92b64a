"""The figures of one run, flat: a row of the comparison's frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.analysis import mfu
from harness.common.formatting import is_number
from harness.records import step_metrics
from harness.records.run_record import RecordedRun

QUALITY = ("image_auroc", "pixel_auroc", "aupro", "f1_max", "answer_accuracy")
HEADLINE = ("image_auroc", "pixel_auroc", "answer_accuracy")  # the figures that the verdict judges
QUALITY_NAMES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "f1_max": "F1-max",
    "answer_accuracy": "answer accuracy",
}
TAILS = (90, 95, 99)  # percentiles of the step that are given where there are steps enough


def untimed(run: RecordedRun) -> bool:
    """Whether a run's times are never shown: a profiler slows the steps it watches, runs that share a machine slow each
    other, and so do workers that share cores."""
    return bool(run.job.get("profile")) or int(run.job.get("concurrent") or 1) > 1 or crowded(run)


def crowded(run: RecordedRun) -> bool:
    """Whether the run had more workers on this machine than it has cores (--oversubscribe)."""
    cores = (run.environment.get("cpu") or {}).get("usable_cores") or 0
    return bool(run.job.get("oversubscribe")) and int(run.job.get("slots") or 1) > cores > 0


def run_row(run: RecordedRun) -> dict[str, Any]:
    """The figures of one run, flat; missing ones are None. samples_per_s: total throughput; typical_step_s: the median
    step. Times in s (or ms where named), memory in MiB."""
    job, result = run.job, run.result
    memory = run.memory
    evaluation, phases = result.get("evaluation") or {}, result.get("phases") or {}
    device, rss = _numbers(memory.get("peak_device_mib")), _numbers(memory.get("peak_rss_mib"))
    times = _times(run)
    return {
        "study": run.study,
        "run": run.name,
        "label": run.label,
        "backend": run.backend,
        "workers": run.workers,
        "nodes": job.get("nodes"),
        "scaling": job.get("scaling"),
        "precision": job.get("precision"),
        "precision_mode": job.get("precision_mode"),
        "global_batch": job.get("global_batch"),
        "seed": run.seed,
        "repeat": run.repeat,
        "status": result.get("status"),
        "reason": run.reason,
        **times,
        "mfu": mfu.utilization("useful", job, result, run.environment, times["samples_per_s"]),
        "hardware_utilization": mfu.utilization("done", job, result, run.environment, times["samples_per_s"]),
        "peak_rss_mib": max(rss, default=None),
        "peak_device_mib": max(device, default=None),
        "peak_memory_mib": max(device, default=None) or max(rss, default=None),
        "final_loss": final_loss(run),
        **{name: evaluation.get(name) for name in QUALITY},
        "unusable_answers": evaluation.get("unusable_answers"),
        "setup_s": phases.get("setup_s"),
        "train_s": phases.get("train_s"),
        "eval_s": phases.get("eval_s"),
        "wall_s": result.get("wall_s"),
    }


def _times(run: RecordedRun) -> dict[str, Any]:
    """Throughput and steps by steps.jsonl itself: a record made before totals were recorded has them too. None where
    the run's times are not shown."""
    shown = run.ok and not untimed(run)
    throughput = (run.result.get("throughput") or {}) if shown else {}
    whole = run.totals if shown else None
    steps = run.timed_steps if shown else []
    return {
        "samples_per_s": whole.samples_per_s if whole else None,
        "timed_samples": whole.samples if whole else None,
        "timed_s": whole.seconds if whole else None,
        "between_share": whole.between_share if whole else None,
        "timed_steps": len(steps) or None,
        "typical_step_s": float(np.median(steps)) if steps else None,
        **{f"step_s_p{percent}": step_metrics.tail(steps, percent) for percent in TAILS},
        "data_share": throughput.get("data_share"),
        "drift": throughput.get("drift"),
    }


def final_loss(run: RecordedRun, window: int = 10) -> float | None:
    """Mean loss of the last `window` steps: one step's loss depends on its batch more than on the engine."""
    losses = [row["loss"] for row in run.steps[-window:] if is_number(row.get("loss"))]
    return float(np.mean(losses)) if losses else (run.result.get("final") or {}).get("loss")


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values or () if is_number(value)]
