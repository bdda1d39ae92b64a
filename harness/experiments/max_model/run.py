"""The largest LLaMA-type model that each engine setting can train, by real tries in fresh processes.

A cell is a setting on a number of workers. The memory model (`harness.experiments.max_model.memory_formula`) predicts
its largest shape; tries around it (`harness.experiments.max_model.search`) find the real one on a grid of parameter
counts, `--resolution` apart. Every try is recorded at once, so that an interrupted search goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.common.formatting import mebibytes, plural
from harness.experiments.max_model.attempt import Try, run_try
from harness.experiments.max_model.memory_formula import Setting, Training, demand, largest
from harness.experiments.max_model.search import State, state
from harness.experiments.max_model.shapes import Grid
from harness.job.declaration import Job, JobError
from harness.job.engines import parse_backend
from harness.launch.run import preflight
from harness.records.record_files import RecordError, finite, read_json

FILE = "fit.json"
OUTSIDE_MIB = 1536.0  # of a GPU, for the driver's context and NCCL, until a try has measured it
_LEAST_S = 20.0  # a try is not begun with less of the budget left


@dataclass(frozen=True, kw_only=True)
class Search:
    """What all cells share. device_mib: what one worker may use; host_mib: of all workers of this machine together.
    memory_gib: the limit that is set on every worker, None = the device's own."""

    grid: Grid
    training: Training
    device_mib: float
    host_mib: float
    memory_gib: float | None
    steps: int = 3
    threads: int = 1
    try_s: float = 300.0
    oversubscribe: bool = False

    def job(self, setting: Setting, workers: int, point: int) -> Job:
        """The job of one try."""
        training = self.training
        return Job.from_dict(
            {
                "backend": setting.backend,
                "engine": dict(setting.engine),
                "slots": workers,
                "device": "cuda" if training.on_gpu else "cpu",
                "threads": self.threads,
                "oversubscribe": self.oversubscribe,
                "timeout_s": self.try_s,
                "preset": "llama-600m",
                "model": self.grid.shape(point).overrides(),
                "steps": self.steps,
                "global_batch": workers * training.micro_batch,
                "scaling": "weak",
                "precision": training.precision,
                "precision_mode": training.precision_mode,
                "activation_checkpointing": training.activation_checkpointing,
                "eval_samples": -1,
                "keep_weights": False,
                "study": "fit",
            }
        )

    def setup(self) -> dict[str, Any]:
        """What tries must have in common to be one search; the rest may change between its parts."""
        return {
            "resolution": round(self.grid.ratio - 1, 6),
            "vocab": self.grid.vocab,
            "length": self.grid.length,
            **asdict(self.training),
            "memory_gib": self.memory_gib,
            "steps": self.steps,
        }


def new_cell(text: str, workers: int, search: Search) -> dict[str, Any]:
    """A cell of fit.json without tries: its setting and what the memory model predicts."""
    setting = Setting(**parse_backend(text))
    point = max(
        largest(setting, search.grid, workers, search.training, device_mib=search.device_mib, host_mib=search.host_mib),
        search.grid.lowest,
    )
    shape = search.grid.shape(point)
    need = demand(setting, shape, workers, search.training)
    return {
        "setting": text,
        "label": setting.label,
        "workers": workers,
        "oversubscribed": not search.training.on_gpu and workers > len(os.sched_getaffinity(0)),
        "predicted": {"point": point, "parameters": shape.parameters, "shape": shape.name}
        | {"device_mib": need.device, "host_mib": need.host, "phase": need.phase, "held": dict(need.held)},
        "tries": [],
    }


def stand(cell: Mapping[str, Any], search: Search) -> State:
    """Where the search of `cell` stands after its tries."""
    tries = {one["point"]: Try(**one) for one in cell["tries"]}
    return state(tries, cell["predicted"]["point"], lowest=search.grid.lowest, hint=_hint(cell, search, tries))


def _hint(cell: Mapping[str, Any], search: Search, tries: Mapping[int, Try]) -> int | None:
    """What the memory measured at the largest shape that fitted makes of the answer: the prediction, scaled."""
    fitted = [one for one in tries.values() if one.status == "ok" and one.peak_mib and one.predicted_mib]
    if not fitted:
        return None
    best = max(fitted, key=lambda one: one.point)
    assert best.peak_mib
    room = search.device_mib
    if search.memory_gib is None and best.limit_mib and best.outside_mib is not None:
        room = best.limit_mib - best.outside_mib
    setting = Setting(**parse_backend(cell["setting"]))
    scaled = room * best.predicted_mib / best.peak_mib
    return largest(setting, search.grid, cell["workers"], search.training, device_mib=scaled, host_mib=search.host_mib)


def conclude(cell: dict[str, Any], search: Search) -> dict[str, Any]:
    """Fills ``status`` (found, none: not even the smallest shape fits, failed, open: not finished), ``reason``,
    ``largest`` (the largest try that trained), ``too_large`` (parameters of the smallest above it that did not) and
    ``error`` (predicted over found, minus 1) from the tries."""
    now = stand(cell, search)
    by_point = {one["point"]: one for one in cell["tries"]}
    best = by_point[now.low] if now.low is not None else None
    odd = next((one for one in cell["tries"] if one["status"] not in ("ok", "oom")), None)
    status = "open"
    if odd is not None:
        status = "failed"
    elif now.found:
        status = "found"
    elif now.next is None and now.low is None:
        status = "none"
    cell |= {
        "status": status,
        "reason": f"{odd['shape']}: {odd['status']}: {odd['reason']}" if odd else "",
        "largest": best,
        "too_large": by_point[now.high]["parameters"] if now.high is not None else None,
        "error": cell["predicted"]["parameters"] / best["parameters"] - 1 if best and status == "found" else None,
    }
    return cell


def run_search(
    cells: Sequence[dict[str, Any]],
    search: Search,
    *,
    save: Callable[[], None],
    log: Path | None = None,
    budget_s: float | None = None,
    say: Callable[[str], None] | None = None,
) -> bool:
    """Tries until every cell has ended (True) or `budget_s` is used up (False). save: called after every try."""
    began = time.monotonic()
    for cell in cells:
        setting = Setting(**parse_backend(cell["setting"]))
        while (point := stand(cell, search).next) is not None:
            left = None if budget_s is None else budget_s - (time.monotonic() - began)
            if left is not None and left < _LEAST_S:
                return False
            limit = search.try_s if left is None else min(search.try_s, left)
            shape = search.grid.shape(point)
            job = search.job(setting, cell["workers"], point)
            told = run_try(job, memory_gib=search.memory_gib, limit_s=limit, log=log)
            if told["status"] == "timeout" and limit < search.try_s:
                return False  # the budget ended it: that says nothing of the shape
            need = demand(setting, shape, cell["workers"], search.training)
            one = Try(point=point, parameters=shape.parameters, shape=shape.name, predicted_mib=need.device, **told)
            cell["tries"].append(finite(asdict(one)))
            conclude(cell, search)
            save()
            if say:
                say(_line(cell, one))
    return True


def _line(cell: Mapping[str, Any], one: Try) -> str:
    text = f"{cell['label']}, {plural(cell['workers'], 'worker')}: {one.parameters / 1e6:.4g} M {one.status}"
    text += f", peak {mebibytes(one.peak_mib)} (predicted {mebibytes(one.predicted_mib)})"
    return f"{text}, {one.seconds:.0f} s{': ' + one.reason if one.status not in ('ok', 'oom') else ''}"


def preflight_cell(cell: Mapping[str, Any], search: Search) -> None:
    """Raises what a run of the cell's first try would be refused for."""
    preflight(search.job(Setting(**parse_backend(cell["setting"])), cell["workers"], cell["predicted"]["point"]))


def resumed(cells: list[dict[str, Any]], search: Search, folder: Path, *, retry: bool) -> list[dict[str, Any]]:
    """`cells` with the tries that `folder` holds; its other cells are kept too."""
    if not (folder / FILE).exists():
        return cells
    from harness.records.soundness import schema_errors

    record = read_json(folder / FILE)
    if wrong := schema_errors("fit", record):
        raise RecordError(f"{folder / FILE}: {wrong[0]}: use --fresh or another --study")
    old, new = dict(record["setup"]), search.setup()
    different = [name for name in new if old.get(name) != json.loads(json.dumps(new[name]))]
    if different:
        name = different[0]
        raise JobError(
            f"{folder} was searched with {name} {old.get(name)}, not {new[name]}: use --fresh or another --study"
        )
    from harness.records.environment import environment, hardware

    there, here = hardware(record.get("environment") or {}), hardware(environment())
    if record.get("environment") and there != here:
        raise JobError(f"{folder} was searched on {there}, this is {here}: use --fresh or another --study")
    known = {(cell["setting"], cell["workers"]): cell for cell in record["cells"]}
    for cell in cells:
        before = known.pop((cell["setting"], cell["workers"]), None)
        if before is not None:  # the first prediction stays: the search began there
            cell |= {"predicted": before["predicted"], "tries": before["tries"]}
            if retry:
                cell["tries"] = [one for one in cell["tries"] if one["status"] in ("ok", "oom")]
    return [*cells, *known.values()]


def gpu_mib() -> list[float]:
    """Total memory of each GPU, by nvidia-smi; [] without one. CUDA is not started: its context would take memory."""
    import shutil
    import subprocess

    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return [float(line) for line in told.stdout.splitlines() if line.strip().replace(".", "").isdigit()]
