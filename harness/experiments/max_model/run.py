"""`harness fit`: the largest LLaMA-type model that each engine setting can train, by real tries in fresh processes.

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

import click

from harness.common.formatting import mebibytes, plural
from harness.experiments.max_model.attempt import Try, run_try
from harness.experiments.max_model.memory_formula import Setting, Training, demand, largest
from harness.experiments.max_model.search import State, state
from harness.experiments.max_model.shapes import Grid
from harness.job.declaration import Job, JobError
from harness.job.number_ranges import COUNT, SECONDS
from harness.launch.run import preflight
from harness.records.record_files import LOG, RecordError, finite, hide_machine, read_json, write_json
from harness.records.run_folder import study_folder

FILE = "fit.json"
_Z = "deepspeed:zero_stage="
BACKENDS = (
    f"ddp,horovod,fsdp2,{_Z}0,{_Z}1,{_Z}2,{_Z}3,{_Z}2+offload_optimizer=cpu,{_Z}3+offload_optimizer=cpu,"
    f"{_Z}3+offload_optimizer=cpu+offload_param=cpu"
)
_OUTSIDE_MIB = 1536.0  # of a GPU, for the driver's context and NCCL, until a try has measured it
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
    from harness.study.study_file import parse_backend

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
    from harness.study.study_file import parse_backend

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
    from harness.study.study_file import parse_backend

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


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--backends", default=BACKENDS, help="Settings, as for `harness compare` (default: ten, with offload).")
@click.option("--workers", default="1,2", show_default=True, help="Workers on this machine, comma-separated.")
@click.option("--resolution", default=0.05, show_default=True, type=click.FloatRange(0.005, 1.0), help="Grid's step.")
@click.option("--memory-gib", type=click.FloatRange(min=0.01), help="Limit a worker to this (default: its device's).")
@click.option(
    "--host-gib",
    type=click.FloatRange(0, min_open=True),
    help="Host memory for offloaded state of all workers (default: what is free).",
)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Where.")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Default: bf16 on a GPU, fp32 on a CPU.")
@click.option(
    "--precision-mode",
    default="matched",
    show_default=True,
    type=click.Choice(["matched", "native"]),
    help="As in run.",
)
@click.option("--activation-checkpointing", is_flag=True, help="Recompute activations in backward.")
@click.option(
    "--micro-batch", default=1, show_default=True, type=click.IntRange(min=1), help="Samples a worker and step."
)
@click.option("--length", default=256, show_default=True, type=click.IntRange(min=2), help="Tokens a sample.")
@click.option(
    "--vocab", default=32_000, show_default=True, type=click.IntRange(min=16), help="Vocabulary of the shapes."
)
@click.option("--steps", default=3, show_default=True, type=click.IntRange(min=2), help="Optimizer steps a try.")
@click.option("--try-s", default=120.0, show_default=True, type=SECONDS, help="Seconds that one try may last.")
@click.option("--budget-s", type=SECONDS, help="Seconds for the whole: ends cleanly with what was found by then.")
@click.option("--threads", type=COUNT, help="CPU threads a worker (default: 1; with GPUs the cores are shared out).")
@click.option("--oversubscribe", is_flag=True, help="Allow more workers than cores.")
@click.option("--retry", is_flag=True, help="Try failed cells again (out of memory is no failure).")
@click.option("--fresh", is_flag=True, help="Drop the recorded tries instead of going on from them.")
@click.option("--study", default="fit", show_default=True, help="Folder in results/.")
@click.option("--results", type=click.Path(), help="Results folder (default: the repository's results/).")
@click.option("--dry-run", is_flag=True, help="Show the predictions and the first tries; start nothing.")
def fit(**options: Any) -> None:
    """Find the largest trainable LLaMA-type model by engine setting and workers, beside the memory model's prediction.

    \b
    harness fit --workers 1,2                          ten settings, on the GPUs that are here
    harness fit --device cpu --memory-gib 0.3 --precision fp32 --vocab 512 --length 32     a small search on a CPU
    """
    folder = study_folder(options["results"], options["study"])
    search = _search(options)
    workers = _workers(options["workers"])
    texts = [text.strip() for text in options["backends"].split(",") if text.strip()]
    cells = [new_cell(text, count, search) for count in workers for text in texts]
    for cell in cells:
        _check(cell, search)
    cells = cells if options["fresh"] else _resumed(cells, search, folder, retry=options["retry"])
    for cell in cells:
        conclude(cell, search)
    if options["dry_run"]:
        _show_plan(cells, search)
        return
    from harness.experiments.max_model.report import plot, write_tables
    from harness.records.environment import environment

    folder.mkdir(parents=True, exist_ok=True)
    record = {"setup": search.setup(), "device_mib": search.device_mib, "host_mib": search.host_mib}
    record |= {"environment": environment(), "finished": False, "cells": cells}
    path = folder / FILE

    def save() -> None:
        write_json(path, record)

    save()
    finished = False
    try:
        finished = run_search(
            cells,
            search,
            save=save,
            budget_s=options["budget_s"],
            log=folder / LOG,
            say=lambda text: click.echo(text, err=True),
        )
    finally:  # an interrupted search leaves its tables too
        record["finished"] = finished
        save()
        write_tables(record, folder)
        plot(record, folder / "fit")
        hide_machine(folder / LOG, folder.parent)
    click.echo((folder / "fit.md").read_text())
    if not finished:
        click.echo("the budget is used up: the same command goes on from here", err=True)
    if any(cell["status"] == "failed" for cell in cells):
        raise click.exceptions.Exit(1)


def _search(options: Mapping[str, Any]) -> Search:
    import psutil

    gpus = _gpu_mib()
    if options["device"] == "cuda" and not gpus:
        raise JobError("--device cuda: no NVIDIA GPU is here: use --device cpu")
    on_gpu = options["device"] != "cpu" and bool(gpus)
    free = psutil.virtual_memory().available / 2**20  # what can be had without swapping
    most = max(_workers(options["workers"]))
    own = min(gpus) - _OUTSIDE_MIB if on_gpu else free
    limit = options["memory_gib"]
    if limit is None and not on_gpu:
        # A search on a CPU would end in the kernel's killer, which may take another process.
        raise JobError(f"a search on a CPU needs --memory-gib: {free / 1024:.1f} GiB are free for {most} workers")
    if limit is not None and not on_gpu and limit * 1024 * most > free:
        raise JobError(f"--memory-gib {limit} x {most} workers: this machine has {free / 1024:.1f} GiB free: use less")
    return Search(
        grid=Grid(ratio=1 + options["resolution"], vocab=options["vocab"], length=options["length"]),
        training=Training(
            micro_batch=options["micro_batch"],
            precision=options["precision"] or ("bf16" if on_gpu else "fp32"),
            precision_mode=options["precision_mode"],
            activation_checkpointing=options["activation_checkpointing"],
            on_gpu=on_gpu,
        ),
        device_mib=own if limit is None else min(own, limit * 1024),
        host_mib=options["host_gib"] * 1024 if options["host_gib"] else free,
        memory_gib=limit,
        steps=options["steps"],
        threads=options["threads"] or (max(1, len(os.sched_getaffinity(0)) // most) if on_gpu else 1),
        try_s=options["try_s"],
        oversubscribe=options["oversubscribe"],
    )


def _workers(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise JobError(f"--workers '{text}': write numbers of workers, as in 1,2")
    return counts


def _check(cell: Mapping[str, Any], search: Search) -> None:
    from harness.study.study_file import parse_backend

    preflight(search.job(Setting(**parse_backend(cell["setting"])), cell["workers"], cell["predicted"]["point"]))


def _resumed(cells: list[dict[str, Any]], search: Search, folder: Path, *, retry: bool) -> list[dict[str, Any]]:
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


def _show_plan(cells: Sequence[Mapping[str, Any]], search: Search) -> None:
    from harness.common.text_table import Table, markdown

    header = ("setting", "workers", "predicted largest", "shape", "predicted peak", "at", "tried", "next tries (M)")
    rows = []
    for cell in cells:
        expected = cell["predicted"]
        first = stand(cell, search).next
        following = (
            "-"
            if first is None
            else ", ".join(f"{search.grid.shape(point).parameters / 1e6:.4g}" for point in (first, first + 1))
        )
        rows.append(
            (
                cell["label"], str(cell["workers"]), f"{expected['parameters'] / 1e6:.4g} M", expected["shape"],
                mebibytes(expected["device_mib"]), expected["phase"], str(len(cell["tries"])), following,
            )
        )  # fmt: skip
    click.echo(markdown(Table(id="plan", title="Predictions and next tries", columns=header, rows=tuple(rows))))
    click.echo(
        f"{plural(len(cells), 'cell')}, at least 2 tries each where the prediction holds, of at most "
        f"{search.try_s:.0f} s; limit {mebibytes(search.device_mib)} a worker"
    )


def _gpu_mib() -> list[float]:
    """Total memory of each GPU, by nvidia-smi; [] without one. CUDA is not started: its context would take memory."""
    import shutil
    import subprocess

    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return [float(line) for line in told.stdout.splitlines() if line.strip().replace(".", "").isdigit()]
