"""The NCHC study's Table 5: share of right Yes/No answers by class (rows) and model version (columns)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.common.formatting import DASH, is_number

BASELINE = "baseline"
_BELOW = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("answer_accuracy", "mean right"))


def by_version(record: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """version -> class -> figure (per cent, mean over its runs), of the decoder's rows of quality.json. Runs without a
    version are the baseline."""
    members: dict[str, list[Mapping[str, Any]]] = {}
    for run in record["runs"]:
        version = str((run.get("job") or {}).get("version") or "").upper() or BASELINE
        own = [figures for figures in run["figures"] if figures["branch"] == "decoder" and figures.get("classes")]
        members.setdefault(version, []).extend(own)
    order = sorted(members, key=lambda version: (version != BASELINE, version))
    return {version: _classes(members[version]) for version in order if members[version]}


def _classes(figures: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    names = sorted({name for each in figures for name in each["classes"]})
    found: dict[str, dict[str, float]] = {}
    for name in names:
        rows = [each["classes"][name] for each in figures if name in each["classes"]]
        for figure, _ in _BELOW:
            values = [row[figure] for row in rows if is_number(row.get(figure))]
            if values:
                found.setdefault(name, {})[figure] = 100 * float(np.mean(values))
    return found


def version_table(record: Mapping[str, Any]) -> str:
    """Markdown in the layout of the study's Table 5: a row a class with the share of right answers, then means over the
    classes; a column a version. "" where there is but one class and one version."""
    found = by_version(record)
    classes = sorted({name for rows in found.values() for name in rows})
    if len(classes) < 2 and len(found) < 2:
        return ""
    lines = [
        "Right Yes/No answers by class and version, per cent (the layout of the NCHC study's Table 5; decoder's maps)",
        "",
        "| class | " + " | ".join(found) + " |",
        "| --- |" + " ---: |" * len(found),
    ]
    for name in classes:
        lines.append(_line(name, [rows.get(name, {}).get("answer_accuracy") for rows in found.values()]))
    for figure, words in _BELOW:
        columns = [[row[figure] for row in rows.values() if figure in row] for rows in found.values()]
        lines.append(_line(words, [float(np.mean(values)) if values else None for values in columns]))
    return "\n".join(lines)


def _line(name: str, values: Sequence[float | None]) -> str:
    return f"| {name} | " + " | ".join(DASH if value is None else f"{value:.2f}" for value in values) + " |"
