"""The plot of `harness experiment collectives`: busbw over size, one panel an operation, one line a library, the link's
rate across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.colors import dashes, styles
from harness.common.formatting import binary
from harness.report.plots import figure_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(record: Mapping[str, Any], stem: Path) -> None:
    """Writes STEM.png and STEM.svg."""
    libraries = [library for library in record["libraries"] if any("busbw" in row for row in library["rows"])]
    operations = list(dict.fromkeys(row["operation"] for library in libraries for row in library["rows"]))
    columns = min(2, len(operations))
    lines = -(-len(operations) // columns)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        _draw(record, libraries, operations, figure, axes)

    figure_files(stem.parent, stem.name, draw, size=(4.8 * columns, 3.4 * lines))


def _draw(
    record: Mapping[str, Any],
    libraries: Sequence[Mapping[str, Any]],
    operations: Sequence[str],
    figure: Figure,
    axes: Any,
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    looks = styles([library["via"] for library in record["libraries"]])
    for axis, operation in zip(axes.flat, operations, strict=False):
        for library in libraries:
            rows = [row for row in library["rows"] if row["operation"] == operation and "busbw" in row]
            if not rows:
                continue
            look = looks[library["via"]]
            (line,) = axis.plot(
                [row["bytes"] for row in rows],
                [row["busbw"] * 8 / 1e9 for row in rows],
                color=look.light,
                marker=look.marker,
                markersize=5,
                label=library["via"],
            )
            if pattern := dashes(look):
                line.set_dashes(pattern)
        if record["link_bytes_per_s"]:
            rate = record["link_bytes_per_s"] * 8 / 1e9
            axis.axhline(rate, color="0.45", linewidth=1)
            axis.annotate(
                f"link {rate:g} Gbit/s", (0.01, rate), xycoords=("axes fraction", "data"), fontsize=8, color="0.3",
                xytext=(0, 2), textcoords="offset points",
            )  # fmt: skip
        axis.set(yscale="log", title=operation.replace("_", "-"))
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(LogLocator(base=4, numticks=9))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: binary(value)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in list(axes.flat)[len(operations) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("size of the larger buffer")
    for axis in axes[:, 0]:
        axis.set_ylabel("bus bandwidth, Gbit/s")
    axes.flat[0].legend(fontsize=8, frameon=False)
    ranks = next((row["ranks"] for library in libraries for row in library["rows"] if "ranks" in row), 0)
    nodes = len(record["hosts"])
    figure.suptitle(f"Collectives, {ranks} workers on {nodes} node{'s' if nodes > 1 else ''}", fontsize=11)
