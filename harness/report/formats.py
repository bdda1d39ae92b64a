"""`harness report`: runs or studies as HTML, Markdown, CSV, JSON or LaTeX."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.analysis import judged_speed
from harness.analysis.caveats import findings
from harness.analysis.comparison import Comparison, summarize_runs
from harness.analysis.cost import Prices
from harness.analysis.intervals import Difference
from harness.analysis.verdict import setting, verdict
from harness.common.text_table import latex, markdown
from harness.job.declaration import JobError
from harness.records.record_files import finite
from harness.records.run_record import load_runs
from harness.report import notes, sections

FORMATS = ("html", "md", "csv", "json", "latex")
SUFFIX = {"html": "html", "md": "md", "csv": "csv", "json": "json", "latex": "tex"}


def write_report(comparison: Comparison, path: Path, *, prices: Prices | None = None, format: str = "html") -> Path:
    """Writes the report to `path` (whole or not at all) and returns it."""
    return write_page(render(comparison, prices or Prices.load(), format), path)


def write_page(text: str, path: Path) -> Path:
    """Writes a rendered report to `path`, whole or not at all, and returns it. Raises JobError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise JobError(f"{path}: cannot write the report there ({error.strerror}): use --out FILE") from None
    return path


def render(comparison: Comparison, prices: Prices, format: str) -> str:
    """The report as text in one of `FORMATS`."""
    if format == "html":
        from harness.report.page.study import render as page

        return page(comparison, prices)
    if format == "csv":
        return comparison.csv()
    if format == "json":
        return to_json(comparison)
    found = findings(comparison)
    parts = sections.all_tables(comparison, prices)
    if format == "latex":
        head = "".join(f"% {sentence}\n" for sentence in [setting(comparison), *verdict(comparison, found)])
        return head + "\n" + "\n".join(latex(table) for table in parts)
    lines = [f"# {comparison.title}", "", f"{setting(comparison)}.", ""]
    lines += [f"- {sentence}" for sentence in verdict(comparison, found)]
    lines += notes.markdown(notes.notes_on(comparison.runs))
    lines += ["", *(markdown(table) for table in parts)]
    if found:
        lines += ["### Warnings", "", *(f"- **{finding.level}**: {finding.text}" for finding in found), ""]
    return "\n".join(lines)


def to_json(comparison: Comparison) -> str:
    """Everything the report says, for programs."""
    found = findings(comparison)
    of_runs = comparison.duels is None
    value = {
        "title": comparison.title,
        "setting": setting(comparison),
        "verdict": verdict(comparison, found),
        "notes": notes.notes_on(comparison.runs),
        "findings": [{"level": item.level, "code": item.code, "text": item.text} for item in found],
        "cells": _plain_rows(judged_speed.cells(comparison)),
        "runs": _plain_rows(comparison.frame),
        "groups": [
            {"runs": [run.name for run in comparison.members(group)], "differs": list(reasons)}
            for group, reasons in enumerate(comparison.comparability.reasons)
        ],
        "differences": [
            {"group": pair.group, "workers": pair.workers, "figure": pair.figure, **_difference(pair.difference)}
            for pair in [*(comparison.speed if of_runs else judged_speed.differences(comparison)), *comparison.quality]
        ],
        "variants": [
            {
                "engine": one.engine,
                "workers": one.workers,
                "setting": one.setting,
                "against": one.against,
                "speed": _difference(one.speed) | {"a": one.against, "b": one.setting},
                "memory": one.memory,
                "final_loss": one.loss,
            }
            for one in judged_speed.variants(comparison)
        ],
    }
    return json.dumps(finite(value), indent=1) + "\n"


def _difference(found: Difference) -> dict[str, Any]:
    names = ("a", "b", "value", "low", "high", "pairs", "relative", "real", "alike")
    return {name: getattr(found, name) for name in names}


def _plain_rows(frame: Any) -> list[dict[str, Any]]:
    return [
        {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def comparison_of(paths: Sequence[Path]) -> Comparison:
    """The comparison of run and study folders; its title is the study's name, or all of them."""
    runs = load_runs(list(paths))
    names = list(dict.fromkeys(run.study for run in runs))
    title = runs[0].name if len(runs) == 1 else ", ".join(names[:4])
    return summarize_runs(runs, title=title)
