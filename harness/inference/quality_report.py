"""quality.json as tables: quality.csv, and quality.md for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.common.formatting import DASH, is_number
from harness.common.text_table import Table, csv_text
from harness.inference.quality_plan import FIGURES
from harness.inference.version_table import version_table
from harness.records.record_files import write_json, write_text

FILE = "quality.json"
_HEADS = ("label", "workers", "branch", "memory", "shots", "runs")


def write(record: Mapping[str, Any], folder: Path) -> None:
    """quality.json, quality.csv and quality.md."""
    write_json(folder / FILE, record)
    columns = [*_HEADS, *(f"{name}_{part}" for name in FIGURES for part in ("mean", "sd"))]
    rows = []
    for row in record["rows"]:
        cells = [row.get(name, {}).get(part) for name in FIGURES for part in ("mean", "sd")]
        rows.append([*(str(row[head]) for head in _HEADS), *("" if cell is None else f"{cell:.6g}" for cell in cells)])
    text = csv_text(Table(id="quality", title="", columns=columns, rows=rows))
    write_text(folder / "quality.csv", text)
    write_text(folder / "quality.md", markdown(record) + "\n")


def markdown(record: Mapping[str, Any]) -> str:
    """The table, the study's table of classes and versions where there are several, the kinds and the controls."""
    parts = [_figures(record), _controls(record), version_table(record), _kinds(record["rows"])]
    return "\n\n".join(part for part in parts if part)


def _figures(record: Mapping[str, Any]) -> str:
    used = [name for name in FIGURES if any(name in row for row in record["rows"])]
    lines = [
        f"### Quality of {record['preset']} on {record['data']}: mean ± sd over the runs",
        "",
        "| engine and model | workers | map | shots | runs | " + " | ".join(FIGURES[name] for name in used) + " |",
        "| --- | ---: | --- | ---: | ---: |" + " ---: |" * len(used),
    ]
    for row in record["rows"]:
        cells = [row["label"], str(row["workers"]), _source(row), str(row["shots"] or DASH), str(row["runs"])]
        lines.append("| " + " | ".join([*cells, *(_cell(row.get(name)) for name in used)]) + " |")
    return "\n".join(lines)


def _controls(record: Mapping[str, Any]) -> str:
    """What the starred columns and the thresholds are, why figures are missing, and the near-duplicates."""
    share = f"{record['held_out_pass']:.0%}"
    lines = [
        (
            "\\* controls. median alone: image AUROC of each map's median, which a small defect cannot move. within "
            f"defective: pixel AUROC over defective pictures only. Held-out threshold: passed by {share} of good "
            "pictures kept out of training; no test picture decides it. AUROC on held-out: those good pictures against "
            "the same with simulated defects; settings are chosen by it."
        )
    ]
    if any("grounded_accuracy" in row for row in record["rows"]):
        lines.append(
            "Grounded answers begin with what score and map decide (Yes or No by the held-out threshold, the place by "
            "the map's peak); the language model writes the rest. The other answers are the language model's alone."
        )
    lines += [f"{text[0].upper()}{text[1:]}." for text in _reasons(record["rows"])]
    near = record.get("near_duplicates") or {}
    if near and is_number(near["auroc_of_distance"]):  # undefined for a test set of good pictures alone
        lines.append(
            f"Near-duplicates: {near['share_of_good']:.0%} of the test's good pictures and "
            f"{near['share_of_defective']:.0%} of its defective ones correlate above {near['correlation']} "
            f"with one of {near['training_pictures']} training pictures; the correlation alone, without a model, "
            f"reaches an image AUROC of {near['auroc_of_distance']:.3f}. A memory of the training pictures profits "
            "from that."
        )
    return "\n\n".join(lines)


def _kinds(rows: Sequence[Mapping[str, Any]]) -> str:
    by_kind = [row for row in rows if row["kinds"]]
    kinds = sorted({kind for row in by_kind for kind in row["kinds"]})
    if not kinds:
        return ""
    lines = ["Where it comes from: image AUROC against the good pictures / answers right, by kind", ""]
    lines += ["| engine | workers | map | shots | " + " | ".join(kinds) + " |"]
    lines += ["| --- | ---: | --- | ---: |" + " ---: |" * len(kinds)]
    for row in by_kind:
        cells = [row["label"], str(row["workers"]), _source(row), str(row["shots"] or DASH)]
        for kind in kinds:
            own = row["kinds"].get(kind, {})
            cells.append(" / ".join(f"{own[n]:.2f}" if n in own else DASH for n in ("image_auroc", "answer_accuracy")))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _source(row: Mapping[str, Any]) -> str:
    return row["branch"] + (f" ({row['memory']})" if row["memory"] else "")


def _reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why figures stand nowhere in the table, such as a data set without masks; not what was not asked for."""
    texts = dict.fromkeys(text for row in rows for text in row.get("undefined", ()))
    return [text for text in texts if "no answers were generated" not in text]


def _cell(figure: Mapping[str, Any] | None) -> str:
    if not figure:
        return DASH
    return f"{figure['mean']:.3f}" + ("" if figure["sd"] is None else f" ± {figure['sd']:.3f}")
