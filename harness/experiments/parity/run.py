"""Does every engine compute what a single process computes? Trains, compares weights, tabulates."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from harness.experiments.parity.judge import Verdict, cause_of, judge
from harness.experiments.trainings.cells import Cell, is_told
from harness.experiments.trainings.launch import train_cells
from harness.job.declaration import Job, JobError
from harness.records.record_files import write_text

JOB_FILE = "job.json"
Say = Callable[[str], None]


def run_parity(
    base: Job,
    cells: Sequence[Cell],
    *,
    keep: str | None = None,
    resume: bool = False,
    say: Say | None = None,
) -> list[Verdict]:
    """Trains the references and all cells, judges each and names the cause where one is not equal. keep: folder for
    weights and logs. resume: what is in it is not trained again. Raises JobError where a reference fails."""
    wanted = {cell.reference() for cell in cells} | {
        cell.same_split() for cell in cells if cell.precision_mode == "matched"
    }
    references = sorted(wanted, key=lambda cell: cell.name)
    with tempfile.TemporaryDirectory(prefix="harness-parity-out-") as temporary:
        out = Path(keep) if keep else Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        done = _kept(base, out) if resume else set()
        write_text(out / JOB_FILE, json.dumps(base.to_dict()))
        todo = [cell for cell in [*references, *cells] if cell.name not in done]
        failures = train_cells(base, todo, out, say=say)
        for reference in references:
            if reference in failures:
                raise JobError(
                    f"the single-process reference failed: {failures[reference]}: see {out} (use --keep FOLDER)"
                )
        return _explained([judge(cell, out, base.steps, failures) for cell in cells], base, out, say)


def _kept(base: Job, out: Path) -> set[str]:
    """Names of the cells that an earlier call has trained into `out`. Raises JobError where it was another job."""
    file = out / JOB_FILE
    if file.exists() and Job.load(file).with_(time_limit_s=base.time_limit_s) != base:
        raise JobError(f"{out}: holds cells of another job: choose another --keep folder, or leave --resume out")
    return {path.stem for path in out.glob("*.json") if path.name != JOB_FILE and is_told(path)}


def _explained(verdicts: list[Verdict], base: Job, out: Path, say: Say | None) -> list[Verdict]:
    """The verdicts with their causes. fp32 cells that differ are explained by controls, one a way to split."""
    odd = {(v.cell.parts, v.cell.clip) for v in verdicts if v.status == "differs" and v.cell.precision == "fp32"}
    controls = {}
    for parts, clip in sorted(odd):
        if parts > 1:
            from harness.experiments.parity.cause import split_control

            if say is not None:
                say(f"control in one process: batches in {parts} parts, fp32 and fp64")
            controls[parts, clip] = split_control(base.with_(clip_norm=base.clip_norm if clip else None), parts)
    explained = []
    for verdict in verdicts:
        cell = verdict.cell
        control = controls.get((cell.parts, cell.clip)) if cell.precision == "fp32" else None
        cause, known = cause_of(verdict, out, control)
        explained.append(replace(verdict, cause=cause, explained=known))
    return explained
