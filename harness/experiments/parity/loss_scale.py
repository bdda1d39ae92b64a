"""The fp16 loss scale of every engine in one figure: an overflow planted on one rank must be skipped by all alike.

`harness experiment parity --loss-scale`. The rule is short (window of 5 steps), so that the scale rises, is halved by
the planted overflow, and rises again within the figure.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.common import colors
from harness.common.formatting import joined
from harness.experiments.trainings.cells import Cell, cells_of
from harness.experiments.trainings.launch import train_cells
from harness.job.declaration import Job, JobError
from harness.records.record_files import csv_of, write_text
from harness.report.plots import figure_files

ENGINES = ("ddp", "fsdp2", "horovod", "deepspeed:0", "deepspeed:1", "deepspeed:2", "deepspeed:3")
RULE = {"initial_power": 10, "window": 5, "hysteresis": 1, "floor": 1.0}
STEPS, OVERFLOW_AT = 24, 8
COLUMNS = ("step", "loss", "loss_scale", "skipped", "grad_norm")
NAME = "loss_scale"

Curves = Mapping[str, Sequence[Mapping[str, Any]]]


def measure(
    base: Job,
    *,
    workers: int = 2,
    at: int = 0,
    engines: Sequence[str] = ENGINES,
    say: Callable[[str], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Trains each engine in matched fp16 under its launcher; rows of COLUMNS by engine. at: step of the overflow (0 =
    OVERFLOW_AT). Raises JobError where an engine fails or refuses fp16 on this device."""
    base = base.with_(steps=max(STEPS, base.steps), loss_scale=RULE)
    made = cells_of(engines, [workers], [1], [True], ["fp16"], ["matched"])
    cells = [Cell(**{**vars(cell), "overflow_at": at or OVERFLOW_AT}) for cell in made]
    with tempfile.TemporaryDirectory(prefix="harness-loss-scale-") as temporary:
        out = Path(temporary)
        failures = train_cells(base, cells, out, say=say)
        curves = {}
        for cell in cells:
            if cell in failures:
                raise JobError(f"{cell.engine} on {workers} workers failed: {failures[cell]}")
            told = json.loads((out / f"{cell.name}.json").read_text())
            if "refused" in told:
                raise JobError(f"{cell.engine} refuses fp16: {told['refused']}")
            curves[cell.engine] = [{name: row[name] for name in COLUMNS} for row in told["rows"]]
    return curves


def sentence(curves: Curves) -> tuple[str, bool]:
    """(what the figure shows, whether all engines moved their scale and skipped alike)."""
    skipped = {engine: [row["step"] for row in rows if row["skipped"]] for engine, rows in curves.items()}
    scales = {engine: [row["loss_scale"] for row in rows] for engine, rows in curves.items()}
    first = next(iter(curves))
    odd = [engine for engine in curves if (skipped[engine], scales[engine]) != (skipped[first], scales[first])]
    if not odd:
        steps = joined([str(step) for step in skipped[first]]) or "no step"
        return f"all {len(curves)} engines skip step {steps} and hold the same loss scale in every step", True
    told = "; ".join(f"{engine} skips {skipped[engine]}" for engine in [first, *odd])
    return f"the engines do not move their loss scale alike: {told}", False


def write(curves: Curves, folder: Path) -> list[Path]:
    """Writes loss_scale.csv, .png and .svg into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.csv"
    rows = [{"engine": engine, **{name: row[name] for name in COLUMNS}} for engine in curves for row in curves[engine]]
    write_text(path, csv_of(rows))
    return [path, *figure_files(folder, NAME, lambda figure: _draw(curves, figure), size=(7.2, 6.6))]


def _draw(curves: Curves, figure: Any) -> None:
    """Three panels over the same steps. Lines that lie on each other are nested, the first the broadest, so that all
    can be seen where all agree."""
    scale, skipped, norm = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 3])
    styles = colors.styles(list(curves))
    for position, (engine, rows) in enumerate(curves.items()):
        steps, style = [row["step"] for row in rows], styles[engine]
        width = 1.4 * (len(curves) - position)
        look: dict[str, Any] = {"color": style.light, "linewidth": width, "solid_capstyle": "butt"}
        scale.step(steps, [row["loss_scale"] for row in rows], where="mid", **look)
        norm.plot(steps, [_or_gap(row["grad_norm"]) for row in rows], **look)
        dropped = [row["step"] for row in rows if row["skipped"]]
        skipped.plot(dropped, [position] * len(dropped), linestyle="", marker=style.marker, color=style.light)
    for step in sorted({row["step"] for rows in curves.values() for row in rows if row["skipped"]}):
        for axes in (scale, skipped, norm):
            axes.axvline(step, color="0.6", linewidth=0.8, zorder=0)
    scale.set_yscale("log", base=2)
    scale.set_ylabel("loss scale")
    scale.set_title(sentence(curves)[0], fontsize=9, loc="left")
    skipped.set_yticks(range(len(curves)), list(curves), fontsize=8)
    for tick, engine in zip(skipped.get_yticklabels(), curves, strict=True):
        tick.set_color(styles[engine].light)
    skipped.set_ylim(len(curves) - 0.5, -0.5)
    skipped.set_ylabel("skipped step")
    norm.set_ylabel("gradient norm")
    norm.set_xlabel("optimizer step (the gap: an infinite norm)")


def _or_gap(value: float | None) -> float:
    return float("nan") if value is None else value
