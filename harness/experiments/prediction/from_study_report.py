"""prediction.md and the figure of a curve predicted from a comparison study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.common import colors
from harness.common.formatting import DASH, number, plural
from harness.common.text_table import Table, markdown
from harness.experiments.prediction.from_study import KINDS
from harness.experiments.prediction.run import headline
from harness.records.record_files import finite, write_json, write_text
from harness.report.plots import figure_files

NAME = "prediction"


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes prediction.json, .md, .png and .svg; returns their paths."""
    paths = [folder / f"{NAME}.json", folder / f"{NAME}.md"]
    write_json(paths[0], finite({**report, "headline": headline(report)}))
    write_text(paths[1], markdown(table(report)))
    return [*paths, *figure_files(folder, NAME, lambda figure: _draw(report, figure), size=(9.6, 4.2))]


def table(report: Mapping[str, Any]) -> Table:
    """One line an engine, kind of scaling and number of workers."""
    rows = []
    for label, one in report["engines"].items():
        for kind, curve in one["curves"].items():
            for point in curve:
                seen = point["measured_efficiency"]
                off = point["step_s"] / point["measured_step_s"] - 1 if point["measured_step_s"] else None
                fitted = point["workers"] <= report["fitted_workers"]
                rows.append(
                    [
                        label,
                        kind,
                        str(point["workers"]),
                        number(point["samples_per_s"]),
                        f"{point['efficiency']:.1%} ({point['efficiency_low']:.1%} to {point['efficiency_high']:.1%})",
                        DASH if seen is None else f"{seen:.1%}",
                        DASH if off is None else f"{off:+.1%}{' (fitted)' if fitted else ''}",
                    ]
                )
    error = report["median_error"]
    told = (
        "No cell past them has been measured"
        if error is None
        else f"Median error of the step on more workers: {error:.1%}"
    )
    return Table(
        id=NAME,
        title=f"Scaling predicted from runs on up to {plural(report['fitted_workers'], 'worker')}",
        columns=["engine", "scaling", "workers", "samples/s", "efficiency (band)", "measured", "step's error"],
        rows=rows,
        note=f"{told}. The band reaches from an exchange bound by bytes to one bound by messages. The model: "
        "harness/experiments/prediction/from_study.py.",
    )


def _draw(report: Mapping[str, Any], figure: Any) -> None:
    """A panel for each kind of scaling: the curve, its band, and what was measured (hollow: fitted)."""
    kinds = [kind for kind in KINDS if any(kind in one["curves"] for one in report["engines"].values())]
    looks = colors.styles(list(report["engines"]))
    for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        axes.axhline(100, color="#444444", linewidth=1, linestyle=":")
        axes.axvline(report["fitted_workers"], color="0.6", linewidth=1)
        counts: set[int] = set()
        for label, one in report["engines"].items():
            curve, look = one["curves"].get(kind), looks[label]
            if not curve:
                continue
            xs = [point["workers"] for point in curve]
            counts |= set(xs)
            (line,) = axes.plot(
                xs, [100 * p["efficiency"] for p in curve], color=look.light, linewidth=1.5, label=label
            )
            if (pattern := colors.dashes(look)) is not None:
                line.set_dashes(pattern)
            ends = ([100 * p[f"efficiency_{end}"] for p in curve] for end in ("low", "high"))
            axes.fill_between(xs, *ends, color=look.light, alpha=0.15, linewidth=0)
            for point in curve:
                seen = point["measured_efficiency"]
                if seen is not None:
                    face = "none" if point["workers"] <= report["fitted_workers"] else look.light
                    axes.plot(
                        [point["workers"]], [100 * seen], color=look.light, marker=look.marker, markerfacecolor=face
                    )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(counts), [str(count) for count in sorted(counts)])
        axes.minorticks_off()
        axes.set(xlabel="workers", title=f"{kind} scaling, predicted past {report['fitted_workers']}")
        axes.set_ylim(0, 112)
        axes.legend(loc="lower left")
    figure.axes[0].set_ylabel("efficiency, %")
