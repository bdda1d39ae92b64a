"""duel.json read back: which pairs are asked for, their differences and verdicts, what else a reader must know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from harness.analysis.duels.estimate import FIRST_STAGE, Block, DuelDifference, difference
from harness.analysis.intervals import ALIKE
from harness.common.formatting import joined, plural
from harness.instruments.foreign_load import NOTED
from harness.records.run_record import label_of

NAME = "duel.json"
PAGE = "duel.md"
AGAIN = " #"  # stands before the number of a contender that is the same as an earlier one: a calibration
WAITING = 0.005  # share of the cores that a waiting engine keeps busy above which it is said
COMPARED, PARTED = 5, 0.005  # losses of the first steps that must agree, and to which share

Record = Mapping[str, Any]  # what duel.json holds
Side = Mapping[str, Any]  # one of its contenders: name, backend, workers, global_batch and the engine's settings


def blocks_of(record: Record) -> list[Block]:
    """The record's blocks."""
    return [Block(**block) for block in record["blocks"]]


def first_stage_of(record: Record) -> int:
    """Duels of the record's first stage, after which their number was chosen."""
    return int((record.get("goal") or {}).get("first_stage") or FIRST_STAGE)


def told_by(record: Record) -> dict[str, dict[str, Any]]:
    """Contender -> what its rank 0 reported at the end of the first duel that it fought."""
    told: dict[str, dict[str, Any]] = {}
    for duel in reversed(record["duels"]):
        told |= duel["told"]
    return told


def label(side: Side) -> str:
    """The engine as reports call it: ``DeepSpeed ZeRO-2``."""
    own = [*side["settings"], *side.get("changes", ())]
    return label_of({**side, "engine": dict(map(tuple, own))}, zero_stage=side["zero_stage"])


def same_as(name: str) -> str | None:
    """The contender that `name` calibrates against (``single@1 #2``: ``single@1``); None for an ordinary one."""
    first, mark, count = name.rpartition(AGAIN)
    return first if mark and count.isdigit() else None


def asked_pairs(contenders: Sequence[Side]) -> list[tuple[str, str]]:
    """(a, b), b is told against a: each contender against the first, and among those of as many workers every Horovod
    against every DeepSpeed (the project's question), or, without such a pair, each against the first of them."""
    first, *others = contenders
    pairs = [(first["name"], other["name"]) for other in others]
    for workers in sorted({side["workers"] for side in contenders}):
        here = [side for side in contenders if side["workers"] == workers and side is not first]
        here = [side for side in here if same_as(side["name"]) is None]
        both = [
            (a["name"], b["name"])
            for a in here
            for b in here
            if (a["backend"], b["backend"]) == ("deepspeed", "horovod")
        ]
        pairs += both or [(here[0]["name"], side["name"]) for side in here[1:]]
    return pairs


def deciding_pairs(contenders: Sequence[Side]) -> list[tuple[str, str]]:
    """Those of `asked_pairs` that duels go on for: the engines at equal workers; without such a pair, all."""
    workers = {side["name"]: side["workers"] for side in contenders}
    pairs = asked_pairs(contenders)
    engines = [(a, b) for a, b in pairs if workers[a] == workers[b] and a != contenders[0]["name"]]
    return engines or pairs


def differences_of(
    blocks: Sequence[Block],
    contenders: Sequence[Side],
    pairs: Sequence[tuple[str, str]],
    *,
    first_stage: int = FIRST_STAGE,
) -> list[dict[str, Any]]:
    """A row a pair that was fought: the difference, its verdict, and where b has more workers the scaling efficiency
    against a."""
    workers = {side["name"]: side["workers"] for side in contenders}
    rows = []
    for a, b in pairs:
        try:
            item = difference(blocks, a, b, first_stage=first_stage)
        except ValueError:  # not fought, or not yet
            continue
        row = asdict(item) | {"half_width": item.half_width, "verdict": verdict(item)}
        if workers[b] > workers[a]:
            share = workers[a] / workers[b]
            ends = {"value": item.value, "low": item.low, "high": item.high}
            row["efficiency"] = {name: None if value is None else (1 + value) * share for name, value in ends.items()}
        rows.append(row)
    return rows


def verdict(item: DuelDifference) -> str:
    """``faster`` or ``slower`` (and whether certainly by less than ALIKE), ``alike`` or ``undecided``: b against a."""
    small = item.alike(ALIKE)
    if item.decided:
        word = "faster" if item.value > 0 else "slower"
        return f"{word}, by less than {ALIKE * 100:.0f} %" if small else word
    return "alike" if small else "undecided"


def sentence(item: Mapping[str, Any], beside: str = "") -> str:
    """``horovod@2 against ddp@2: -3.1 % samples/s (95 % CI -3.9 to -2.3 %, 4 duels): slower.`` beside: what else must
    be said of its duels (`harness.analysis.duels.throughput.meanwhile`)."""
    share = f"{item['value'] * 100:+.1f} %"
    return (
        f"{item['b']} against {item['a']}: {share} samples/s ({bounds(item)}, {plural(item['duels'], 'duel')}"
        f"{beside}): {item['verdict']}."
    )


def bounds(item: Mapping[str, Any], digits: int = 1) -> str:
    """``95 % CI -3.9 to -2.3 %``."""
    if item["low"] is None or item["high"] is None:
        return "no interval: one duel"
    return f"95 % CI {item['low'] * 100:.{digits}f} to {item['high'] * 100:.{digits}f} %"


def remarks(record: Record) -> list[str]:
    """What a reader must know beside the verdict: foreign load, what waiting engines cost, losses that differ."""
    found = []
    cores = (record.get("environment") or {}).get("cpu", {}).get("usable_cores") or 1
    foreign = max((duel["foreign_cores"] for duel in record["duels"]), default=0.0)
    if foreign > NOTED * cores:
        found.append(f"Other programs kept up to {foreign:.2f} of {cores} cores busy during a duel.")
    others = {item["pid"]: item["name"] for duel in record["duels"] for item in duel.get("gpu_processes") or ()}
    if others:
        names = joined([f"{name} (process {pid})" for pid, name in sorted(others.items())[:4]])
        count = plural(len(others), "other process", "other processes")
        found.append(f"{count} computed on the same GPUs during the duels: {names}.")
    for name in (side["name"] for side in record["contenders"]):
        busy = max((duel["waiting_cores"].get(name, 0.0) for duel in record["duels"]), default=0.0)
        if busy > WAITING * cores:
            found.append(f"{name} kept {busy:.2f} of {cores} cores busy while it waited for its turn.")
    return found + _losses_that_differ(record)


def _losses_that_differ(record: Record) -> list[str]:
    """Contenders of one global batch train the same samples from the same weights: their first losses must agree.

    Later ones differ by rounding alone in bf16 and fp16, and the faster the learning rate, the sooner.
    """
    told = told_by(record)
    compared = _compared(record)
    by_batch: dict[int, list[tuple[str, list[float]]]] = {}
    for side in record["contenders"]:
        losses = (told.get(side["name"]) or {}).get("losses")
        if losses:
            by_batch.setdefault(side["global_batch"], []).append((side["name"], losses))
    found = []
    for (reference, first), *others in by_batch.values():
        for name, losses in others:
            pairs = [
                (a, b)
                for a, b in zip(first[:compared], losses[:compared], strict=True)
                if a is not None and b is not None
            ]
            gap = max((abs(a - b) / max(abs(a), 1e-6) for a, b in pairs), default=math.nan)
            if not gap < PARTED:
                found.append(
                    f"The first {compared} losses of {name} and {reference} differ by up to {gap:.1%}: is it the same "
                    "training?"
                )
    return found


def _compared(record: Record) -> int:
    """How many first losses are of the same training: COMPARED, or those up to the end of the first round where some
    contenders fight in fewer rounds."""
    if all(side.get("every", 1) == 1 for side in record["contenders"]):
        return COMPARED
    return min(COMPARED, record["pace"]["warmup"] + record["pace"]["steps"])
