"""One cell against the single process: how far apart, whether that is too far, and if so why."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.checks.parity import compare
from harness.common.formatting import is_number
from harness.experiments.trainings.cells import Cell

if TYPE_CHECKING:
    from harness.experiments.parity.cause import Control
    from harness.experiments.parity.rounding import RoundingOnly

# Largest relative difference ||a - b|| / ||b|| of any trainable tensor that counts as equal. fp32: the acceptance of
# the project. Reduced types: one rounding of a gradient is up to 2^-8 (bf16) or 2^-11 (fp16) of it; Adam's first steps
# have unit size whatever the gradient's, so a flipped rounding moves a weight by up to lr times that share, every step.
# The bound is that share of the whole UPDATE ||b - start||, over sqrt(steps) independent roundings: see `bound`.
FP32_BOUND = 1e-5
LIKE_CONTROL = 10.0  # a cell's difference over the one that rounding makes in a control, for that to be its cause
UNIT_ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One cell against the single process.

    Args:
        cell: the training.
        status: equal, differs, refused or failed.
        difference: ||a-b||/||b||, of the worst `tensor`.
        of_update: ||a-b||/||b-start|| over all tensors together.
        same_split, same_split_of_update: both, against the single process that splits its batches into as many parts.
        split_of_update: how far that one is from the whole one.
        loss_difference: the largest relative difference of a step's loss.
        bound: what the judged figure may be at most.
        rounding_only: elements whose gradient is zero but for rounding; `difference` and `same_split` are without them.
        rounding_apart: how far apart these are at most, |a-b|.
        skipped: steps that an fp16 overflow dropped.
        reason: what failed or was refused.
        cause: why it is not equal, or what was left out of the bound.
        explained: the cause is shown by a control or by the engine's source.
    """

    cell: Cell
    status: str
    difference: float | None = None
    tensor: str = ""
    of_update: float | None = None
    same_split: float | None = None
    same_split_of_update: float | None = None
    split_of_update: float | None = None
    loss_difference: float | None = None
    bound: float | None = None
    rounding_only: int = 0
    rounding_apart: float | None = None
    skipped: tuple[int, ...] = ()
    reason: str = ""
    cause: str = ""
    explained: bool = False


def bound(cell: Cell, steps: int) -> tuple[str, float]:
    """(which difference, how large it may be) for a matched cell of this precision."""
    if cell.precision == "fp32":
        return "difference", FP32_BOUND
    return "of_update", UNIT_ROUNDOFF[cell.precision] * math.sqrt(steps)


def judge(
    cell: Cell, out: Path, steps: int, failures: Mapping[Cell, str], rounding: RoundingOnly | None = None
) -> Verdict:
    """Compares one cell's weights and losses with its reference's, all in `out`; the cause is left open.

    Args:
        failures: why a cell has no file.
        rounding: elements in which an fp32 cell is not held to the bound, but to what rounding can make of them.
    """
    from safetensors.torch import load_file

    told = _told(cell, out, failures)
    if isinstance(told, Verdict):
        return told
    reference = cell.reference()
    mine, theirs = load_file(out / f"{cell.name}.safetensors"), load_file(out / f"{reference.name}.safetensors")
    start = load_file(out / "start.safetensors")
    if set(mine) != set(theirs):
        odd = sorted(set(mine) ^ set(theirs))[0]
        return Verdict(cell=cell, status="differs", reason=f"tensor '{odd}' is in one of the two only")
    alike = out / f"{cell.same_split().name}.safetensors"
    split = load_file(alike) if alike.exists() else None
    rows, reference_rows = told["rows"], json.loads((out / f"{reference.name}.json").read_text())["rows"]
    kept = rounding.without if rounding is not None else dict
    found = compare(kept(mine), kept(theirs))
    apart = rounding.apart(mine, theirs) if rounding is not None else None
    figures = {"difference": found.relative, "of_update": _of_update(mine, theirs, start)}
    which, limit = bound(cell, steps)
    reason = _unlike_steps(rows, reference_rows) if cell.precision_mode == "matched" else ""
    if rounding is not None and apart is not None and apart > rounding.reach:
        reason = rounding.too_far(apart)
    return Verdict(
        cell=cell,
        status="equal" if figures[which] <= limit and not reason else "differs",
        difference=found.relative,
        tensor=found.tensor,
        of_update=figures["of_update"],
        same_split=None if split is None else compare(kept(mine), kept(split)).relative,
        same_split_of_update=None if split is None else _of_update(mine, split, start),
        split_of_update=None if split is None else _of_update(split, theirs, start),
        loss_difference=max(_losses_apart(rows, reference_rows), default=None),
        bound=limit,
        rounding_only=rounding.count if rounding is not None else 0,
        rounding_apart=apart,
        skipped=_skipped(rows),
        reason=reason,
    )


def _told(cell: Cell, out: Path, failures: Mapping[Cell, str]) -> dict[str, Any] | Verdict:
    """What the cell's training told, or the verdict on one that failed or was refused."""
    path = out / f"{cell.name}.json"
    if not path.exists():
        return Verdict(cell=cell, status="failed", reason=failures.get(cell, "no result"))
    told = json.loads(path.read_text())
    return Verdict(cell=cell, status="refused", reason=told["refused"]) if "refused" in told else told


def _unlike_steps(rows: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> str:
    """In what a matched cell's steps are not its reference's, whatever its weights; "" where they are alike."""
    if math.inf in _losses_apart(rows, reference):
        return "the loss of a step is a number in only one of the two"
    skipped, expected = list(_skipped(rows)), list(_skipped(reference))
    return "" if skipped == expected else f"skipped steps {skipped}, the single process {expected}"


def _skipped(rows: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    return tuple(row["step"] for row in rows if row["skipped"])


def _losses_apart(rows: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> list[float]:
    """The relative difference of each step's loss, but of steps in which both overflowed."""
    return [
        _apart(a["loss"], b["loss"])
        for a, b in zip(rows, reference, strict=True)
        if is_number(a["loss"]) or is_number(b["loss"])
    ]


def cause_of(verdict: Verdict, out: Path, control: Control | None = None, left_out: str = "") -> tuple[str, bool]:
    """(why a cell is not equal, in words, whether that is shown and not only suspected): from the engine's description
    of itself, which cites its source, and from controls. Native precision departs by design.

    Args:
        verdict: of the cell whose files are in `out`.
        control: of fp32 cells, for their number of parts.
        left_out: what the bound was not held to, said of an equal cell too.
    """
    cell = verdict.cell
    if verdict.status == "failed":
        return verdict.reason, False
    if verdict.status == "refused":
        return f"the engine refuses it: {verdict.reason}", True
    described = json.loads((out / f"{cell.name}.json").read_text())["engine"]
    if cell.precision_mode == "native":
        return "; ".join(native_departures(described, verdict.skipped)), True
    if verdict.status == "equal":
        return left_out, True
    departures = [str(text) for text in described.get("departures") or []]
    known = [text for text in (verdict.reason, left_out) if text] + departures
    shown = bool(departures) and not verdict.reason
    if control is not None:
        known.append(control.sentence())
        alike = verdict.difference is not None and verdict.difference <= LIKE_CONTROL * control.fp32
        if control.is_rounding and not alike:
            known.append(f"the cell is more than {LIKE_CONTROL:g} times as far off: not the cause, or not the only one")
        shown = (shown or (control.is_rounding and alike)) and not verdict.reason
    if verdict.reason:
        return "; ".join(known), False
    if verdict.same_split is not None and verdict.same_split <= FP32_BOUND:
        known.append(
            f"a single process that splits its batches into {cell.parts} parts, and so rounds at the same places, ends "
            "with the same weights (column same split)"
        )
        shown = True
    elif _is_splitting(verdict) and not departures:
        known.append(
            f"rounding of the parts, no engine's: a single process that sums its batches in {cell.parts} parts departs "
            f"from the one that does not by {verdict.split_of_update:.1e} of the update in {cell.precision}, and the "
            f"cell from that single process by {verdict.same_split_of_update:.1e} only (bound {verdict.bound:.1e})"
        )
        shown = True
    return "; ".join(known), shown


def _is_splitting(verdict: Verdict) -> bool:
    """Whether a half-precision cell is within its bound of the single process that splits alike, and that one is not
    within it of the whole one."""
    mine, alone, limit = verdict.same_split_of_update, verdict.split_of_update, verdict.bound
    if verdict.cell.precision == "fp32" or mine is None or alone is None or limit is None:
        return False
    return mine <= limit < alone


def native_departures(described: Mapping[str, Any], skipped: tuple[int, ...] = ()) -> list[str]:
    """How an engine's own half precision departs from the like-for-like one, from what it says it did."""
    found = [str(text) for text in described.get("departures") or []]
    if described.get("gather_dtype", "fp32") != "fp32":
        kind = described["gather_dtype"]
        found.append(
            f"weights are gathered in {kind} and compute without autocast, so norms and losses that autocast leaves in "
            f"fp32 are {kind} too (MixedPrecisionPolicy, torch/distributed/fsdp/_fully_shard/_fsdp_api.py)"
        )
    rule = described.get("loss_scale_rule") or {}
    if rule.get("initial") == 2.0**16:
        found.append("torch's GradScaler: the scale begins at 65536 and may double every 2000 steps (matched: 4096)")
    if skipped:
        found.append(f"skipped steps {list(skipped)}: the scale was too high")
    if not found:
        found.append("none: autocast over fp32 weights is this engine's own way")
    return found


def row_of(verdict: Verdict) -> dict[str, Any]:
    """A flat row for JSON, CSV and the table."""
    cell = asdict(verdict.cell)
    cell["settings"] = dict(verdict.cell.settings)
    return {"engine": verdict.cell.engine, **cell, **{k: v for k, v in asdict(verdict).items() if k != "cell"}}


def _of_update(a: Mapping[str, Any], b: Mapping[str, Any], start: Mapping[str, Any]) -> float:
    """||a - b|| / ||b - start|| over all tensors together, in double precision."""
    apart = sum(float((a[name].double() - b[name].double()).square().sum()) for name in b)
    moved = sum(float((b[name].double() - start[name].double()).square().sum()) for name in b)
    return math.sqrt(apart / moved) if moved else math.inf


def _apart(loss: float | None, reference: float | None) -> float:
    """Relative difference; infinite where only one of them is a number."""
    if not is_number(loss) or not is_number(reference):
        return math.inf
    return abs(loss - reference) / max(abs(reference), 1e-12)
