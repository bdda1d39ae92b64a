"""What lies in a study's folder beside its runs: comparison.csv, the plots and report.html, written together."""

from __future__ import annotations

from pathlib import Path

from harness.analysis.comparison import Comparison
from harness.analysis.cost import Prices
from harness.report.duel_files import write_picture
from harness.report.formats import write_report
from harness.report.plots import FIGURES, write_plots


def write_study_files(comparison: Comparison, study: Path, *, prices: Prices | None = None) -> Path:
    """Writes them all from the same comparison, so that no two of them say different things; a plot that has nothing
    to show any more is taken away. Returns the report's path. Raises JobError where the folder cannot be written."""
    page = write_report(comparison, study / "report.html", prices=prices)
    write_report(comparison, study / "comparison.csv", format="csv")
    written = set(write_plots(comparison, study))
    if comparison.duels is not None:
        write_picture(study)
    for path in (study / f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")):
        if path not in written:
            path.unlink(missing_ok=True)
    return page
