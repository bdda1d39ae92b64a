"""Does every engine compute what a single process computes? Trains, compares weights, tabulates."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.experiments.parity.judge import Verdict, cause_of, judge
from harness.experiments.trainings.cells import Cell, is_told
from harness.experiments.trainings.launch import train_cells
from harness.job.declaration import Job, JobError
from harness.records.record_files import write_text

if TYPE_CHECKING:
    from harness.experiments.parity.cause import Control

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
        verdicts = [judge(cell, out, base.steps, failures) for cell in cells]
        return _explained(_without_rounding(verdicts, base, out, say), base, out, say)


def _kept(base: Job, out: Path) -> set[str]:
    """Names of the cells that an earlier call has trained into `out`. Raises JobError where it was another job."""
    file = out / JOB_FILE
    if file.exists() and Job.load(file).with_(time_limit_s=base.time_limit_s) != base:
        raise JobError(f"{out}: holds cells of another job: choose another --keep folder, or leave --resume out")
    return {path.stem for path in out.glob("*.json") if path.name != JOB_FILE and is_told(path)}


def _without_rounding(verdicts: list[Verdict], base: Job, out: Path, say: Say | None) -> list[Verdict]:
    """The verdicts; fp32 cells that differ are judged again without the elements whose gradient is rounding."""
    odd = [verdict for verdict in verdicts if _differs_in_fp32(verdict)]
    if not odd:
        return verdicts
    from safetensors.torch import load_file

    from harness.experiments.parity.rounding import looked_at

    if say is not None:
        say("control in one process: which gradients are zero but for rounding, fp32 and fp64")
    ends = sorted({verdict.cell.reference().name for verdict in odd})
    states = [load_file(out / f"{name}.safetensors") for name in ("start", *ends)]
    rounding, trouble = looked_at(base, states)
    if trouble and say is not None:
        say(f"no such control: {trouble}")
    if rounding is None or not rounding.elements:
        return verdicts
    judged = []
    for verdict in verdicts:
        if _differs_in_fp32(verdict):
            verdict = judge(verdict.cell, out, base.steps, {}, rounding)
            if not verdict.reason and verdict.rounding_apart is not None:
                verdict = replace(verdict, cause=rounding.sentence(verdict.rounding_apart))
        judged.append(verdict)
    return judged


def _differs_in_fp32(verdict: Verdict) -> bool:
    return verdict.status == "differs" and verdict.cell.precision == "fp32" and verdict.difference is not None


def _explained(verdicts: list[Verdict], base: Job, out: Path, say: Say | None) -> list[Verdict]:
    """The verdicts with their causes. fp32 cells that differ are explained by controls, one a way to split."""
    odd = {(v.cell.parts, v.cell.clip) for v in verdicts if _differs_in_fp32(v) and v.cell.parts > 1}
    controls = {
        (parts, clip): _control(base.with_(clip_norm=base.clip_norm if clip else None), parts, say)
        for parts, clip in sorted(odd)
    }
    explained = []
    for verdict in verdicts:
        cell = verdict.cell
        control = controls.get((cell.parts, cell.clip)) if cell.precision == "fp32" else None
        cause, known = cause_of(verdict, out, control, left_out=verdict.cause)
        explained.append(replace(verdict, cause=cause, explained=known))
    return explained


def _control(job: Job, parts: int, say: Say | None) -> Control | None:
    """`split_control`; None where the model cannot compute in fp64, as a user's may not."""
    from harness.experiments.parity.cause import split_control

    if say is not None:
        say(f"control in one process: batches in {parts} parts, fp32 and fp64")
    try:
        return split_control(job, parts)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        if say is not None:
            say(f"no such control: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
        return None
