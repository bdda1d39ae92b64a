"""A model of each engine's step, fitted to a scaling study and drawn past the machines at hand.

Its error is stated first: every (nodes, rate) cell is held back once and predicted from the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from harness.common.text_table import Table
from harness.experiments.prediction import step_time_formula as model
from harness.experiments.virtual_scaling.report import median_step, name_of
from harness.job.declaration import JobError
from harness.records.record_files import RecordError, read_json

LARGEST = 512


def build_report(
    folder: Path, largest: int, link: float | None, wait_s: float, parameter_bytes: float, rounds: int
) -> dict[str, Any]:
    """Per engine: constants, held-back errors and the drawn curve. Raises JobError where the study is too small."""
    from harness.experiments.virtual_scaling.run import FILE

    if not (folder / FILE).exists():
        raise RecordError(f"{folder / FILE}: no scaling study there: harness experiment scaling --study {folder.name}")
    record = read_json(folder / FILE)
    rows = [row for row in record["rows"] if "failed" not in row]
    engines: dict[str, Any] = {}
    for name in dict.fromkeys(row["engine"] for row in rows):
        own = [row for row in rows if row["engine"] == name]
        points = [_point(row, record["cores"]) for row in own]
        groups = [(row["nodes"], row["rate"], row["parameter_bytes"]) for row in own]
        if len(set(groups)) < 5 or not any(point.ranks > 1 for point in points):
            raise JobError(f"study '{folder.name}' has {len(set(groups))} cells of {name}: measure at least 5")
        held = model.leave_one_out(points, groups)
        fitted = model.fit(points)
        spread = model.bootstrap(points, rounds)
        wait = wait_s or max(point.wait_s for point in points)
        size = parameter_bytes or max(point.parameter_bytes for point in points)
        engines[name] = {
            "constants": fitted.__dict__,
            "held_back": [
                {name: row[name] for name in ("nodes", "rate", "scaling", "parameter_bytes")}
                | {"measured_s": point.step_s, "error": error}
                for row, (point, error) in zip(own, held, strict=True)
            ],
            "median_error": median([abs(error) for _, error in held]),
            "curve": _curve(fitted, spread, largest, wait, size, link),
        }
    return {
        "link_bytes_per_s": link,
        "wait_s": wait_s or max(row["wait_s"] for row in rows),
        "parameter_bytes": parameter_bytes or max(row["parameter_bytes"] for row in rows),
        "cores": record["cores"],
        "measured_nodes": max(row["nodes"] for row in rows),
        "median_error": median([abs(item["error"]) for one in engines.values() for item in one["held_back"]]),
        "engines": engines,
    }


def _point(row: Mapping[str, Any], cores: int) -> model.Point:
    """A measured row; cores: that the nodes share."""
    return model.Point(
        ranks=row["nodes"],
        wait_s=row["wait_s"],
        parameter_bytes=row["parameter_bytes"],
        link_bytes_per_s=row["link_bytes_per_s"],
        step_s=median_step(row),
        crowd=max(1.0, row["nodes"] / cores),
    )


def headline(report: Mapping[str, Any]) -> str:
    """How far off the predictions are of what was measured and held back from the fit."""
    error = report["median_error"]
    if error is None:
        return "`harness experiment predict`: nothing was held back to be predicted."
    return f"`harness experiment predict` is {error:.1%} off in the median on cells held back."


def _curve(
    fitted: model.Model, spread: Sequence[model.Model], largest: int, wait: float, size: float, link: float | None
) -> list[dict[str, float]]:
    """Step time and weak-scaling efficiency at 1, 2, 4 ... nodes, with the 5 % and 95 % points of the resamplings."""
    import numpy as np

    found = []
    one = model.Point(ranks=1, wait_s=wait, parameter_bytes=size, link_bytes_per_s=link)
    ranks = 1
    while ranks <= largest:
        point = model.Point(ranks=ranks, wait_s=wait, parameter_bytes=size, link_bytes_per_s=link)
        efficiencies = [each.step(one) / each.step(point) for each in spread]
        low, high = (float(value) for value in np.percentile(efficiencies, (5, 95)))
        found.append(
            {
                "nodes": ranks,
                "step_s": fitted.step(point),
                "efficiency": fitted.step(one) / fitted.step(point),
                "efficiency_low": low,
                "efficiency_high": high,
            }
        )
        ranks *= 2
    return found


def _constants(one: dict[str, Any]) -> list[str]:
    """An engine's constants as text, then its median error."""
    own = one["constants"]
    return [
        f"{own['overhead'] * 1e3:.1f}",
        f"{own['update'] * 1e9 * 1024:.0f}",
        f"{own['alpha'] * 1e6:.0f}",
        f"{own['host'] * 1e9 * 1024:.0f}",
        f"{own['inefficiency']:.2f}",
        f"{own['overlap']:.2f}",
        f"{own['straggler'] * 1e3:.1f}",
        f"{one['median_error']:.1%}",
    ]


def tables_of(report: dict[str, Any]) -> list[Table]:
    """The fitted constants with the median error of each engine, and the errors by link rate and number of nodes."""
    cells: dict[tuple[str, str, int, float], list[float]] = {}
    for name, one in report["engines"].items():
        for item in one["held_back"]:
            key = (name_of(name), item["rate"], item["nodes"], item["parameter_bytes"])
            cells.setdefault(key, []).append(item["error"])
    errors = [
        [engine, rate, str(nodes), f"{size / 4e6:.2g} M", ", ".join(f"{error:+.1%}" for error in found)]
        for (engine, rate, nodes, size), found in cells.items()
    ]
    return [
        Table(
            id="constants",
            title="The model of the step, fitted to measured runs",
            columns=[
                *("engine", "overhead ms", "update ns/KiB", "alpha us", "host ns/KiB", "link inefficiency", "overlap"),
                *("straggler ms", "median error"),
            ],
            rows=[[name_of(name), *_constants(one)] for name, one in report["engines"].items()],
            note="update: a rank's own work a byte of parameters; alpha: a message's latency; host: time of a byte "
            "sent, in the processes; link inefficiency: time on the link over bytes / rate. The virtual nodes shared "
            f"{report['cores']} cores: where workers outnumber them, what the processors do is multiplied by the "
            "workers a core; the drawing has a core for each. Median error over all held-back cells: "
            f"{report['median_error']:.1%}.",
        ),
        Table(
            id="held-back",
            title="Cells held back and predicted from the others",
            columns=["engine", "links", "nodes", "parameters", "predicted against measured"],
            rows=errors,
            note="Each (nodes, link rate, size) is left out of the fit once, with all its runs (weak, then strong).",
        ),
    ]


def print_report(report: dict[str, Any]) -> None:
    """The constants, the error of held-back cells and the drawn efficiencies."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="fitted to measured runs; error of cells that were held back", title_justify="left")
    for heading in ("engine", "fix ms", "own ns/KiB", "alpha us", "ns/KiB", "link x", "overlap", "slow ms", "error"):
        table.add_column(
            heading, justify="left" if heading == "engine" else "right", no_wrap=True, min_width=len(heading)
        )
    for name, one in report["engines"].items():
        table.add_row(name, *_constants(one))
    console = Console()
    console.print(table)
    console.print("fix: overhead; alpha: a message; ns/KiB: in the processes; link x: on the link; slow: stragglers")
    console.print(f"median error over all held-back cells: {report['median_error']:.1%}")
    for name, one in report["engines"].items():
        drawn = [point for point in one["curve"] if point["nodes"] in (8, 64)] + one["curve"][-1:]
        words = [f"{p['nodes']}: {p['efficiency']:.1%}" for p in drawn]
        console.print(f"{name}, weak-scaling efficiency at nodes {', '.join(words)}", highlight=False)
