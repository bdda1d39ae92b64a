"""One cell against the single process: how far apart, whether that is too far, and if so why."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.checks.parity import compare
from harness.common.formatting import is_number
from harness.experiments.trainings.cells import Cell

if TYPE_CHECKING:
    from harness.experiments.parity.cause import Control

# Largest relative difference ||a - b|| / ||b|| of any trainable tensor that counts as equal. fp32: the acceptance of
# the project. Reduced types: one rounding of a gradient is up to 2^-8 (bf16) or 2^-11 (fp16) of it; Adam's first steps
# have unit size whatever the gradient's, so a flipped rounding moves a weight by up to lr times that share, every step.
# The bound is that share of the whole UPDATE ||b - start||, over sqrt(steps) independent roundings: see `bound`.
FP32_BOUND = 1e-5
UNIT_ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One cell against the single process. difference: ||a-b||/||b||, worst tensor; of_update: ||a-b||/||b-start|| over
    all tensors together; same_split, same_split_of_update: both against the single process that splits its batches into
    as many parts; split_of_update: how far that one is from the whole one; status: equal | differs | refused | failed;
    cause: why it is not equal, "" where it is; explained: the cause is shown by a control or by the engine's source;
    reason: what failed or was refused."""

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
    skipped: tuple[int, ...] = ()
    reason: str = ""
    cause: str = ""
    explained: bool = False


def bound(cell: Cell, steps: int) -> tuple[str, float]:
    """(which difference, how large it may be) for a matched cell of this precision."""
    if cell.precision == "fp32":
        return "difference", FP32_BOUND
    return "of_update", UNIT_ROUNDOFF[cell.precision] * math.sqrt(steps)


def judge(cell: Cell, out: Path, steps: int, failures: Mapping[Cell, str]) -> Verdict:
    """Compares one cell's weights and losses with its reference's, all in `out`; the cause is left open."""
    from safetensors.torch import load_file

    path = out / f"{cell.name}.json"
    if not path.exists():
        return Verdict(cell=cell, status="failed", reason=failures.get(cell, "no result"))
    told = json.loads(path.read_text())
    if "refused" in told:
        return Verdict(cell=cell, status="refused", reason=told["refused"])
    reference = cell.reference()
    mine, theirs = load_file(out / f"{cell.name}.safetensors"), load_file(out / f"{reference.name}.safetensors")
    start = load_file(out / "start.safetensors")
    if set(mine) != set(theirs):
        odd = sorted(set(mine) ^ set(theirs))[0]
        return Verdict(cell=cell, status="differs", reason=f"tensor '{odd}' is in one of the two only")
    found = compare(mine, theirs)
    rows, reference_rows = told["rows"], json.loads((out / f"{reference.name}.json").read_text())["rows"]
    losses = [
        _apart(a["loss"], b["loss"])
        for a, b in zip(rows, reference_rows, strict=True)
        if is_number(a["loss"]) or is_number(b["loss"])  # both overflowed where a step was skipped
    ]
    figures = {"difference": found.relative, "of_update": _of_update(mine, theirs, start)}
    which, limit = bound(cell, steps)
    skipped = tuple(row["step"] for row in rows if row["skipped"])
    reference_skipped = tuple(row["step"] for row in reference_rows if row["skipped"])
    reason, equal = "", figures[which] <= limit
    if cell.precision_mode == "matched" and skipped != reference_skipped:
        equal, reason = False, f"skipped steps {list(skipped)}, the single process {list(reference_skipped)}"
    if cell.precision_mode == "matched" and math.inf in losses:
        equal, reason = False, "the loss of a step is a number in only one of the two"
    alike = out / f"{cell.same_split().name}.safetensors"
    split = load_file(alike) if alike.exists() else None
    return Verdict(
        cell=cell,
        status="equal" if equal else "differs",
        difference=found.relative,
        tensor=found.tensor,
        of_update=figures["of_update"],
        same_split=None if split is None else compare(mine, split).relative,
        same_split_of_update=None if split is None else _of_update(mine, split, start),
        split_of_update=None if split is None else _of_update(split, theirs, start),
        loss_difference=max(losses) if losses else None,
        bound=limit,
        skipped=skipped,
        reason=reason,
    )


def cause_of(verdict: Verdict, out: Path, control: Control | None = None) -> tuple[str, bool]:
    """(why a cell is not equal, in words, whether that is shown and not only suspected): from the engine's description
    of itself, which cites its source, and from controls. ("", True) where it is equal. Native precision departs by
    design. control: of fp32 cells, for their number of parts."""
    cell = verdict.cell
    if verdict.status == "failed":
        return verdict.reason, False
    if verdict.status == "refused":
        return f"the engine refuses it: {verdict.reason}", True
    described = json.loads((out / f"{cell.name}.json").read_text())["engine"]
    if cell.precision_mode == "native":
        return "; ".join(native_departures(described, verdict.skipped)), True
    if verdict.status == "equal":
        return "", True
    departures = [str(text) for text in described.get("departures") or []]
    known = ([verdict.reason] if verdict.reason else []) + departures
    shown = bool(departures) and not verdict.reason
    if control is not None:
        known.append(control.sentence())
        shown = shown or control.is_rounding
    if verdict.same_split is not None and verdict.same_split <= FP32_BOUND:
        known.append(
            f"a single process that splits its batches into {cell.parts} parts, and so rounds at the same places, ends "
            "with the same weights (column same split)"
        )
        shown = True
    elif _is_splitting(verdict) and not departures and not verdict.reason:
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
