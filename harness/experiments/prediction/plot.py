"""The plot of `harness experiment predict`: efficiency over nodes with its band, and the errors of held-back cells."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.colors import dashes, styles
from harness.experiments.virtual_scaling.report import name_of
from harness.report.plots import figure_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(report: Mapping[str, Any], stem: Path) -> None:
    """Writes STEM.png and STEM.svg."""
    figure_files(stem.parent, stem.name, partial(_draw, report), size=(10, 3.9))


def _draw(report: Mapping[str, Any], figure: Figure) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

    engines = report["engines"]
    looks = styles(list(engines))
    curve, error = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, one in engines.items():
        look = looks[name]
        xs = [point["nodes"] for point in one["curve"]]
        (line,) = curve.plot(
            xs,
            [point["efficiency"] for point in one["curve"]],
            color=look.light,
            marker=look.marker,
            ms=4,
            label=name_of(name),
        )
        if pattern := dashes(look):
            line.set_dashes(pattern)
        low, high = ([point[f"efficiency_{end}"] for point in one["curve"]] for end in ("low", "high"))
        curve.fill_between(xs, low, high, color=look.light, alpha=0.15, linewidth=0)
        error.plot(
            [item["measured_s"] * 1e3 for item in one["held_back"]],
            [item["error"] for item in one["held_back"]],
            color=look.light, marker=look.marker, ms=4, linestyle="none",
        )  # fmt: skip
    curve.axvline(report["measured_nodes"], color="0.5", linewidth=1)
    curve.annotate("measured | predicted", (report["measured_nodes"], 1.03), ha="center", fontsize=8, color="0.3")
    curve.set_xscale("log", base=2)
    curve.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    curve.xaxis.set_minor_locator(NullLocator())
    curve.yaxis.set_major_formatter(PercentFormatter(1.0))
    curve.set(ylim=(0, 1.1), xlabel="nodes, one worker each", ylabel="weak-scaling efficiency")
    rate = report["link_bytes_per_s"]
    link = f"{rate * 8e-9:g} Gbit/s links" if rate else "unlimited links"
    size = report["parameter_bytes"] / 4e6
    curve.set_title(f"{link}, {report['wait_s'] * 1e3:.0f} ms computing, {size:.3g} M parameters", fontsize=10)
    curve.legend(fontsize=8, frameon=False)
    error.axhline(0, color="0.5", linewidth=1)
    error.set_xscale("log", base=2)
    error.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    error.xaxis.set_minor_locator(NullLocator())
    error.yaxis.set_major_formatter(PercentFormatter(1.0))
    error.set(xlabel="measured step, ms", ylabel="predicted - measured")
    error.set_title(f"cells held back: median error {report['median_error']:.1%}", fontsize=10)
