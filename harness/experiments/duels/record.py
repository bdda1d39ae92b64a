"""What duels gave, as duel.json and duel.md: totals, differences with intervals, what else was on the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.analysis.intervals import ALIKE
from harness.common.formatting import DASH, number, plural
from harness.common.text_table import Table, markdown
from harness.experiments.duels.estimate import Block, DuelDifference, difference
from harness.experiments.duels.fight import Contender, Duel, Pace
from harness.experiments.trainings.cells import Cell
from harness.job.declaration import Job
from harness.records.record_files import write_json, write_text

NAME = "duel.json"
_SPREAD = ("sd between duels", "sd of a round")
WAITING = 0.005  # share of the cores that a waiting engine keeps busy above which it is said
COMPARED, PARTED = 5, 0.005  # losses of the first steps that must agree, and to which share
FOREIGN = 0.05  # share of the cores above which foreign load is said beside the verdict


def record_of(
    base: Job, contenders: Sequence[Contender], pace: Pace, duels: Sequence[Duel], pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The whole record, JSON-serializable. pairs: (a, b), b is told against a."""
    from harness.records.step_metrics import environment

    blocks = [block for duel in duels for block in duel.blocks]
    return {
        "job": base.to_dict(),
        "environment": environment(),
        "pace": asdict(pace),
        "contenders": [
            {"name": item.name, "global_batch": item.global_batch, **asdict(item.cell)} for item in contenders
        ],
        "duels": [
            {
                "start_s": duel.start_s,
                "fight_s": duel.fight_s,
                "foreign_cores": duel.foreign,
                "waiting_cores": duel.waiting,
                "told": duel.told,
            }
            for duel in duels
        ],
        "blocks": [asdict(block) for block in blocks],
        "differences": differences_of(blocks, contenders, pairs, weak=base.scaling == "weak"),
    }


def differences_of(
    blocks: Sequence[Block], contenders: Sequence[Contender], pairs: Sequence[tuple[str, str]], *, weak: bool
) -> list[dict[str, Any]]:
    """A row a pair: the difference, its verdict, and where b has more workers the scaling efficiency against a."""
    workers = {item.name: item.cell.workers for item in contenders}
    rows = []
    for a, b in pairs:
        item = difference(blocks, a, b)
        row = asdict(item) | {"half_width": item.half_width, "verdict": verdict(item)}
        if weak and workers[b] > workers[a]:
            share = workers[a] / workers[b]
            ends = {name: None if value is None else (1 + value) * share for name, value in _ends(item).items()}
            row["efficiency"] = ends
        rows.append(row)
    return rows


def _ends(item: DuelDifference) -> dict[str, float | None]:
    return {"value": item.value, "low": item.low, "high": item.high}


def rendered_again(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its differences made anew from its blocks, for every pair that `asked_pairs` names today."""
    contenders = [_contender(item) for item in record["contenders"]]
    weak = record["job"]["scaling"] == "weak"
    pairs = asked_pairs(contenders)
    return {**record, "differences": differences_of(blocks_of(record), contenders, pairs, weak=weak)}


def _contender(item: Mapping[str, Any]) -> Contender:
    cell: dict[str, Any] = {key: value for key, value in item.items() if key not in ("name", "global_batch")}
    cell["settings"] = tuple(map(tuple, cell["settings"]))
    return Contender(name=item["name"], cell=Cell(**cell), global_batch=item["global_batch"])


def asked_pairs(contenders: Sequence[Contender]) -> list[tuple[str, str]]:
    """Each against the first, and every Horovod against every DeepSpeed of as many workers: the project's question."""
    first, *others = contenders
    pairs = [(first.name, other.name) for other in others]
    for deepspeed in contenders:
        for horovod in contenders:
            engines = (deepspeed.cell.backend, horovod.cell.backend)
            if engines == ("deepspeed", "horovod") and deepspeed.cell.workers == horovod.cell.workers:
                pair = (deepspeed.name, horovod.name)
                pairs += [pair] if first.name not in pair else []
    return pairs


def write(record: Mapping[str, Any], folder: Path) -> None:
    """FOLDER/duel.json and duel.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, dict(record))
    write_text(folder / "duel.md", page(record))


def verdict(item: DuelDifference) -> str:
    """``faster`` or ``slower`` (and whether certainly by less than ALIKE), ``alike`` or ``undecided``: b against a."""
    small = item.alike(ALIKE)
    if item.decided:
        word = "faster" if item.value > 0 else "slower"
        return f"{word}, by less than {ALIKE * 100:.0f} %" if small else word
    return "alike" if small else "undecided"


def totals(record: Mapping[str, Any]) -> dict[str, float]:
    """Contender -> samples/s: total samples over total seconds of its timed blocks."""
    found: dict[str, tuple[float, float]] = {}
    for block in record["blocks"]:
        samples, seconds = found.get(block["engine"], (0.0, 0.0))
        found[block["engine"]] = (samples + block["samples"], seconds + block["seconds"])
    return {name: samples / seconds for name, (samples, seconds) in found.items()}


def page(record: Mapping[str, Any]) -> str:
    """Markdown: the verdicts first, then the tables."""
    sentences = "\n".join(f"- {sentence(item)}" for item in record["differences"])
    notes = "\n".join(f"- {text}" for text in remarks(record))
    parts = [
        "# Duels",
        setting(record),
        sentences,
        markdown(_totals_table(record)),
        markdown(differences_table(record)),
        notes,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def setting(record: Mapping[str, Any]) -> str:
    """What was trained where, and how many duels of which form: two sentences."""
    from harness.analysis.verdict import machine

    job, pace = record["job"], record["pace"]
    place = machine(dict(record.get("environment") or {}))
    what = f"{job['preset']} on {job['data']}, {job['precision']} ({job['precision_mode']}), {job['scaling']} scaling"
    rounds = f"{plural(len(record['duels']), 'duel')} of {pace['rounds']} rounds"
    block = f"a block is {pace['steps']} optimizer steps after a warm-up of {pace['warmup']}"
    return f"{what}; {place}. {rounds}; {block}."


def headline(record: Mapping[str, Any]) -> str:
    """The verdicts in one line, for the index."""
    return " ".join(sentence(item) for item in record["differences"])


def sentence(item: Mapping[str, Any]) -> str:
    """``horovod@2 against ddp@2: -3.1 % samples/s (95 % CI -3.9 to -2.3 %, 4 duels): slower.``"""
    share, bounds = f"{item['value'] * 100:+.1f} %", _bounds(item)
    return (
        f"{item['b']} against {item['a']}: {share} samples/s ({bounds}, {plural(item['duels'], 'duel')}): "
        f"{item['verdict']}."
    )


def remarks(record: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the verdict: foreign load, what waiting engines cost, losses that part."""
    found = []
    cores = (record.get("environment") or {}).get("cpu", {}).get("usable_cores") or 1
    foreign = max((duel["foreign_cores"] for duel in record["duels"]), default=0.0)
    if foreign > FOREIGN * cores:
        found.append(f"Other programs kept up to {foreign:.2f} of {cores} cores busy during a duel.")
    waiting = {
        name: max(duel["waiting_cores"].get(name, 0.0) for duel in record["duels"])
        for name in (item["name"] for item in record["contenders"])
    }
    for name, busy in waiting.items():
        if busy > WAITING * cores:
            found.append(f"{name} kept {busy:.2f} of {cores} cores busy while it waited for its turn.")
    found += _parted_losses(record)
    return found


def _parted_losses(record: Mapping[str, Any]) -> list[str]:
    """Contenders of one global batch train the same samples from the same weights: their first losses must agree.

    Later ones part by rounding alone in bf16 and fp16, and the faster the learning rate, the sooner.
    """
    told = record["duels"][0]["told"] if record["duels"] else {}
    by_batch: dict[int, list[tuple[str, list[float]]]] = {}
    for item in record["contenders"]:
        losses = (told.get(item["name"]) or {}).get("losses")
        if losses:
            by_batch.setdefault(item["global_batch"], []).append((item["name"], losses))
    found = []
    for (reference, first), *others in by_batch.values():
        for name, losses in others:
            pairs = [
                (a, b)
                for a, b in zip(first[:COMPARED], losses[:COMPARED], strict=True)
                if a is not None and b is not None
            ]
            gap = max((abs(a - b) / max(abs(a), 1e-6) for a, b in pairs), default=math.nan)
            if not gap < PARTED:
                found.append(
                    f"The first {COMPARED} losses of {name} and {reference} differ by up to {gap:.1%}: is it the same "
                    "training?"
                )
    return found


def _totals_table(record: Mapping[str, Any]) -> Table:
    rates = totals(record)
    told = record["duels"][0]["told"] if record["duels"] else {}
    rows = []
    for item in record["contenders"]:
        memory = [value for value in (told.get(item["name"]) or {}).get("device_mib") or [] if value is not None]
        final = ((told.get(item["name"]) or {}).get("losses") or [None])[-1]
        rows.append(
            [
                item["name"],
                str(item["workers"]),
                str(item["global_batch"]),
                number(rates[item["name"]], 4),
                f"{max(memory) / 1024:.1f} GiB" if memory else DASH,
                number(final, 5) if final is not None else DASH,
            ]
        )
    return Table(
        id="totals",
        title="Throughput",
        columns=["engine", "workers", "samples a step", "samples/s", "peak memory", "last loss"],
        rows=rows,
        note="samples/s: all samples over all seconds of the timed blocks, every duel. Peak memory: on the device of "
        "the worker that needs most.",
    )


def differences_table(record: Mapping[str, Any]) -> Table:
    """A row a pair."""
    rows = []
    for item in record["differences"]:
        spread = [item["sd_between"], item["sd_within"]]
        rows.append(
            [
                f"{item['b']} against {item['a']}",
                f"{item['value'] * 100:+.2f} %",
                _bounds(item, 2),
                item["verdict"],
                _efficiency(item),
                str(item["duels"]),
                str(item["rounds"]),
                *(DASH if value is None else f"{value * 100:.2f} %" for value in spread),
            ]
        )
    return Table(
        id="differences",
        title="Differences",
        columns=[
            "",
            "samples/s",
            "interval",
            "verdict",
            "efficiency",
            "duels",
            "rounds",
            "sd between duels",
            "sd of a round",
        ],
        rows=rows,
        note="interval: Student's t over the duels, by Stein's rule (estimate.py beside record.py). alike: the whole "
        f"interval lies within {ALIKE:.0%}; undecided: it holds zero and reaches further. efficiency: throughput over "
        "that of the other times the ratio of workers, measured side by side, with the same interval.",
    )


def _efficiency(item: Mapping[str, Any]) -> str:
    ends = item.get("efficiency")
    if not ends:
        return DASH
    if ends["low"] is None:
        return f"{ends['value']:.1%}"
    return f"{ends['value']:.1%} ({ends['low']:.1%} to {ends['high']:.1%})"


def _bounds(item: Mapping[str, Any], digits: int = 1) -> str:
    if item["low"] is None or item["high"] is None:
        return "no interval: one duel"
    return f"95 % CI {item['low'] * 100:.{digits}f} to {item['high'] * 100:.{digits}f} %"


def blocks_of(record: Mapping[str, Any]) -> list[Block]:
    """The record's blocks."""
    return [Block(**block) for block in record["blocks"]]
