"""What `harness experiment overhead` measured, as overhead.json and overhead.md, and what it says in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.common.formatting import joined, plural, trained
from harness.common.text_table import Table, markdown
from harness.job.declaration import Job
from harness.records.record_files import write_json, write_text

NAME = "overhead.json"
LIMIT = 1.02  # the harness's step over a hand-written one: what `harness experiment overhead` ends with an error above


def write(rows: Sequence[Mapping[str, Any]], base: Job, folder: Path) -> None:
    """FOLDER/overhead.json and overhead.md. rows: of `harness.experiments.overhead.run.row_of`."""
    from harness.records.step_metrics import environment

    record = {"job": base.to_dict(), "environment": environment(), "rows": list(rows), "limit": LIMIT}
    record["headline"] = headline(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, record)
    write_text(folder / "overhead.md", page(record))


def page(record: Mapping[str, Any]) -> str:
    """Markdown: one line, then a row an engine and number of workers."""
    from harness.analysis.verdict import machine

    job, rows = record["job"], record["rows"]
    what = f"{trained(job)}, global batch {job['global_batch']}, {job['precision']}"
    table = Table(
        id="overhead",
        title="",
        columns=["engine", "workers", "harness, ms a step", "by hand", "ratio", "95 % interval", "pairs of blocks"],
        rows=[
            [
                row["engine"],
                str(row["workers"]),
                f"{row['harness_ms']:.2f}",
                f"{row['handwritten_ms']:.2f}",
                f"{row['ratio']:.3f}",
                f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
                str(row["blocks"]),
            ]
            for row in rows
        ],
        note="Blocks of ten steps by the harness's loop and by a hand-written one (handwritten_loops.py), in turn, "
        "in one process a worker. Step times are medians of the blocks; the ratio is the median of the pairs' ratios, "
        "not the ratio of the two medians beside it, its interval a bootstrap over the pairs.",
    )
    text = f"{headline(rows)}\n\n{what}; {machine(dict(record.get('environment') or {}))}.\n\n{markdown(table)}"
    return f"# The harness's step against a hand-written loop\n\n{text}"


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """The range of the ratios, and which of them are above 1 for certain."""
    if not rows:
        return "No cell was measured."
    lowest, highest = (min(rows, key=lambda row: row["ratio"]), max(rows, key=lambda row: row["ratio"]))
    slower = [row for row in rows if row["ratio_low"] > 1.0]
    over = plural(len(rows), "cell")
    text = f"{lowest['ratio']:.3f} to {highest['ratio']:.3f} times a hand-written loop over {over}"
    if not slower:
        return f"{text}; none is slower by more than its 95 % interval."
    named = [
        f"{row['engine']} on {plural(row['workers'], 'worker')} ({row['ratio']:.3f}, 95 % CI "
        f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
        for row in slower
    ]
    return f"{text}; slower for certain: {joined(named)}."
