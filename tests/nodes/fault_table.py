"""The fault table of results/: what every fault led to and how soon, written by the tests that plant the faults.

``HARNESS_ALL_FAULTS=1 HARNESS_FAULT_TABLE=results/faults python -m pytest tests/nodes/test_faults.py
tests/nodes/test_elastic.py`` tries each fault with both engines and writes faults.json and faults.md there.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.common.formatting import number
from harness.common.text_table import Table, markdown
from harness.experiments.headlines import headline
from harness.records.environment import environment, scrub
from harness.records.record_files import write_json, write_text

_ROWS: list[dict[str, object]] = []


def note(fault: str, engine: str, *, seconds: float | None, status: str, reason: str) -> None:
    """One fault that went as it should. seconds: from the fault to the end of the job (None: the job went on)."""
    _ROWS.append({"fault": fault, "engine": engine, "seconds": seconds, "status": status, "reason": scrub(reason)})
    if folder := os.environ.get("HARNESS_FAULT_TABLE"):
        write(Path(folder))


def write(folder: Path) -> None:
    """Writes the rows so far; a file of an earlier test run is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    place = environment()
    machine = {key: place[key] for key in ("cpu", "mpi", "os", "python", "versions")}
    machine["nodes"] = "virtual nodes (network namespaces), one core each (all for the elastic job), links unlimited"
    write_json(folder / "faults.json", {"machine": machine, "rows": _ROWS, "headline": headline(_ROWS)})
    rows = [
        [str(row["fault"]), str(row["engine"]), number(row["seconds"]), str(row["status"]), str(row["reason"])]
        for row in sorted(_ROWS, key=lambda row: str(row["fault"]))
    ]
    table = Table(
        id="faults",
        title="Faults planted in a running job on virtual nodes",
        columns=["fault", "engine", "ended after, s", "status", "reason in result.json"],
        rows=rows,
        numeric=False,
        note="Seconds from the fault to the end of `harness run` with its record written. After each one no process "
        "was left on any node (a cut-off node cleans up by itself within 30 s) and earlier records were unchanged. "
        "Written by tests/nodes/fault_table.py.",
    )
    write_text(folder / "faults.md", markdown(table))
