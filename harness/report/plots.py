"""The study's figures as PNG and SVG: scaling, efficiency, convergence, accuracy, differences.

Drawn only from the records, by the Agg and SVG writers, without dates or random ids: the same records and the same
matplotlib give the same bytes, which `harness results check` relies on. The report's page shows the same drawings
(`harness.report.charts.to_page`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.comparison import Comparison
from harness.report.charts import scaling, training
from harness.report.charts.sheet import Draw, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("scaling", "efficiency", "convergence", "accuracy")
STYLE: dict[str, Any] = {
    "svg.hashsalt": "harness",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 150,
    "path.simplify": True,
}


def write_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes FIGURE.png and FIGURE.svg of the main group for each figure that has something to show."""
    draws = {
        "scaling": scaling.throughput,
        "efficiency": scaling.efficiency,
        "convergence": training.convergence,
        "accuracy": training.accuracy,
    }
    written: list[Path] = []
    for name in FIGURES:
        written += sheet_files(folder, name, partial(draws[name], comparison))
    return written


def sheet_files(
    folder: Path,
    name: str,
    draw: Draw,
    *,
    size: tuple[float, float] = (7.2, 4.4),
    kinds: tuple[str, ...] = ("png", "svg"),
) -> list[Path]:
    """`figure_files` of what `draw` draws on a sheet: the title, the note and the legend are part of the picture."""
    return figure_files(folder, name, lambda figure: draw(Sheet(figure=figure)), size=size, kinds=kinds)


def figure_files(
    folder: Path,
    name: str,
    draw: Callable[[Figure], object],
    *,
    size: tuple[float, float] = (7.2, 4.4),
    kinds: tuple[str, ...] = ("png", "svg"),
) -> list[Path]:
    """Writes NAME.png and NAME.svg of what `draw` puts into a figure, in the style of all figures; returns their paths.
    Nothing is written where `draw` returns False. size: inches. kinds: which of the two."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metadata: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": "harness"}}
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        if draw(figure) is False:
            return []
        written = []
        for kind in kinds:
            path = folder / f"{name}.{kind}"
            figure.savefig(path, metadata=metadata[kind])
            written.append(path)
    return written
