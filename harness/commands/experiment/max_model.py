"""`harness experiment max-model`: the largest LLaMA-type model that each engine setting can train."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from harness.commands.number_types import COUNT, TIME
from harness.commands.options import backends_option, dry_run_option, results_option, study_option, workers_option
from harness.common.formatting import mebibytes, plural
from harness.experiments.max_model.memory_formula import Training
from harness.experiments.max_model.run import (
    FILE,
    OUTSIDE_MIB,
    Search,
    conclude,
    gpu_mib,
    new_cell,
    preflight_cell,
    resumed,
    run_search,
    stand,
)
from harness.experiments.max_model.shapes import Grid
from harness.job.declaration import JobError
from harness.protocol.console import tell
from harness.records.record_files import LOG, hide_machine, write_json
from harness.records.run_folder import study_folder

_Z = "deepspeed:zero_stage="
BACKENDS = (
    f"ddp,horovod,fsdp2,{_Z}0,{_Z}1,{_Z}2,{_Z}3,{_Z}2+offload_optimizer=cpu,{_Z}3+offload_optimizer=cpu,"
    f"{_Z}3+offload_optimizer=cpu+offload_param=cpu"
)


@click.command()
@backends_option(BACKENDS)
@workers_option
@click.option(
    "--resolution",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0.005, 1.0),
    help="Relative step between sizes.",
)
@click.option(
    "--memory-gib", type=click.FloatRange(min=0.01), help="Memory limit of a worker (default: all of its device's)."
)
@click.option(
    "--host-gib",
    type=click.FloatRange(0, min_open=True),
    help="Host memory for offloaded state of all workers (default: what is free).",
)
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Where it trains."
)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Default: bf16 on a GPU, fp32 on a CPU.")
@click.option(
    "--precision-mode",
    default="matched",
    show_default=True,
    type=click.Choice(["matched", "native"]),
    help="As for `harness run`.",
)
@click.option("--activation-checkpointing", is_flag=True, help="Recompute activations in backward.")
@click.option(
    "--micro-batch", default=1, show_default=True, type=click.IntRange(min=1), help="Samples per worker and step."
)
@click.option("--length", default=256, show_default=True, type=click.IntRange(min=2), help="Tokens per sample.")
@click.option(
    "--vocab", default=32_000, show_default=True, type=click.IntRange(min=16), help="Vocabulary size of the models."
)
@click.option("--steps", default=3, show_default=True, type=click.IntRange(min=2), help="Optimizer steps per try.")
@click.option("--time-limit", default="2m", show_default=True, type=TIME, help="Limit of one try: 90s, 2m.")
@click.option("--budget", type=TIME, help="Time for the whole search, which then ends with what it has found: 10m.")
@click.option(
    "--threads", type=COUNT, help="CPU threads per worker (default: 1; with GPUs an even share of the cores)."
)
@click.option("--oversubscribe", is_flag=True, help="Allow more workers than cores.")
@click.option("--retry", is_flag=True, help="Try failed cells again (out of memory is no failure).")
@click.option("--fresh", is_flag=True, help="Discard the recorded tries and start anew.")
@study_option("fit")
@results_option
@dry_run_option
def max_model(**options: Any) -> None:
    """Find the largest LLaMA-type model that each engine setting and number of workers can train.

    The result stands beside the memory model's prediction.

    \b
    harness experiment max-model --workers 1,2                          ten settings, on the GPUs that are here
    harness experiment max-model --device cpu --memory-gib 0.3 --vocab 512 --length 32    a small search on a CPU
    """
    folder = study_folder(options["results"], options["study"])
    search = _search(options)
    cells = [new_cell(text, count, search) for count in options["workers"] for text in options["backends"]]
    for cell in cells:
        preflight_cell(cell, search)
    cells = cells if options["fresh"] else resumed(cells, search, folder, retry=options["retry"])
    for cell in cells:
        conclude(cell, search)
    if options["dry_run"]:
        _show_plan(cells, search)
        return
    finished = _search_and_record(cells, search, folder, options["budget"])
    click.echo((folder / "fit.md").read_text())
    if not finished:
        click.echo("the budget is used up: the same command goes on from here", err=True)
    if any(cell["status"] == "failed" for cell in cells):
        raise click.exceptions.Exit(1)


def _search_and_record(cells: Sequence[Any], search: Search, folder: Path, budget_s: float | None) -> bool:
    """Searches every cell and writes its record, tables and plot into `folder`; whether it ended within `budget_s`."""
    from harness.experiments.max_model.report import headline, plot, write_tables
    from harness.records.environment import environment

    folder.mkdir(parents=True, exist_ok=True)
    record = {"setup": search.setup(), "device_mib": search.device_mib, "host_mib": search.host_mib}
    record |= {"environment": environment(), "finished": False, "cells": cells}
    path = folder / FILE

    def save() -> None:
        write_json(path, {**record, "headline": headline(record)})

    save()
    finished = False
    try:
        finished = run_search(cells, search, save=save, budget_s=budget_s, log=folder / LOG, say=tell)
    finally:  # an interrupted search leaves its tables too
        record["finished"] = finished
        save()
        write_tables(record, folder)
        plot(record, folder / "fit")
        hide_machine(folder / LOG, folder.parent)
    return finished


def _search(options: Mapping[str, Any]) -> Search:
    import psutil

    gpus = gpu_mib()
    if options["device"] == "cuda" and not gpus:
        raise JobError("--device cuda: no NVIDIA GPU is here: use --device cpu")
    on_gpu = options["device"] != "cpu" and bool(gpus)
    free = psutil.virtual_memory().available / 2**20  # what can be had without swapping
    most = max(options["workers"])
    own = min(gpus) - OUTSIDE_MIB if on_gpu else free
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
        try_s=options["time_limit"],
        oversubscribe=options["oversubscribe"],
    )


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
        f"{search.try_s:.0f} s; limit {mebibytes(search.device_mib)} per worker"
    )
