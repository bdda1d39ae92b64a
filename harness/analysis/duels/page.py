"""duel.md and the tables of duels: what was trained where, the verdicts, totals and differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.analysis.duels.record import Record, bounds, remarks, sentence, told_by
from harness.analysis.duels.throughput import Rate, meanwhile, rates
from harness.analysis.intervals import ALIKE
from harness.analysis.mfu import utilization
from harness.analysis.verdict import machine
from harness.common.formatting import DASH, number, percent, plural, trained
from harness.common.text_table import Table, markdown


def page(record: Record) -> str:
    """Markdown: the verdicts first, then the tables."""
    sentences = "\n".join(f"- {text}" for text in _sentences(record))
    notes = "\n".join(f"- {text}" for text in remarks(record))
    parts = [
        "# Duels",
        setting(record),
        sentences,
        markdown(totals_table(record)),
        markdown(differences_table(record)),
        notes,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def setting(record: Mapping[str, Any]) -> str:
    """What was trained where, and how many duels of which form: two sentences."""
    job, pace = record["job"], record["pace"]
    place = machine(dict(record.get("environment") or {}))
    what = f"{trained(job)}, {job['precision']} ({job['precision_mode']}), {job['scaling']} scaling"
    rounds = f"{plural(len(record['duels']), 'duel')} of {pace['rounds']} rounds"
    block = f"a block is {pace['steps']} optimizer steps after a warm-up of {pace['warmup']}"
    return f"{what}; {place}. {rounds}; {block}."


def headline(record: Mapping[str, Any]) -> str:
    """The verdicts in one line, for the index."""
    return " ".join(_sentences(record))


def _sentences(record: Mapping[str, Any]) -> list[str]:
    return [sentence(item, meanwhile(record, item["a"], item["b"])) for item in record["differences"]]


def totals_table(record: Mapping[str, Any]) -> Table:
    """A row a contender: its throughput with its interval, memory, last loss."""
    found = rates(record)
    told = told_by(record)
    rows = []
    uses = {kind: _utilizations(record, kind, found, told) for kind in ("useful", "done")}
    counted = any(uses["useful"].values())
    for item in record["contenders"]:
        memory = [value for value in (told.get(item["name"]) or {}).get("device_mib") or [] if value is not None]
        final = ((told.get(item["name"]) or {}).get("losses") or [None])[-1]
        rows.append(
            [
                item["name"],
                str(item["workers"]),
                str(item["global_batch"]),
                _rate_text(found.get(item["name"])),
                str(found[item["name"]].duels) if item["name"] in found else DASH,
                f"{max(memory) / 1024:.1f} GiB" if memory else DASH,
                number(final, 5) if final is not None else DASH,
                *(percent(uses[kind][item["name"]], 1) for kind in uses if counted),
            ]
        )
    return Table(
        id="totals",
        title="Throughput",
        columns=[
            "engine",
            "workers",
            "samples a step",
            "samples/s",
            "duels",
            "peak memory",
            "last loss",
            *(("MFU", "hardware use") if counted else ()),
        ],
        rows=rows,
        note="samples/s: all samples over all seconds of a duel's timed blocks, geometric mean of the duels with its "
        "95 % interval (Student's t over the duels); it holds what the machine did to all engines of a duel, which "
        "cancels in the differences. Peak memory: on the device of the worker that needs most."
        + (" MFU: share of the GPU's peak rate spent on what the real tokens need; hardware use: on all." * counted),
    )


def _rate_text(rate: Rate | None) -> str:
    if rate is None:
        return DASH
    if rate.low is None or rate.high is None:
        return f"{number(rate.value, 4)} (no interval)"
    return f"{number(rate.value, 4)} ({number(rate.low, 4)} to {number(rate.high, 4)})"


def _utilizations(
    record: Record, kind: str, found: Mapping[str, Rate], told: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | None]:
    """Contender -> share of its GPUs' peak, None where unknown. kind: as of `utilization`."""
    shares = {}
    for side in record["contenders"]:
        name = side["name"]
        result = {"flops": (told.get(name) or {}).get("flops"), "world_size": side["workers"]}
        job = {**record["job"], "precision": side["precision"]}
        rate = found[name].value if name in found else None
        shares[name] = utilization(kind, job, result, record.get("environment") or {}, rate)
    return shares


def differences_table(record: Mapping[str, Any]) -> Table:
    """A row a pair."""
    rows = []
    for item in record["differences"]:
        spread = [item["sd_between"], item["sd_within"]]
        rows.append(
            [
                f"{item['b']} against {item['a']}",
                f"{item['value'] * 100:+.2f} %",
                bounds(item, 2),
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
            "compared",
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
        note="interval: Student's t over the duels, by Stein's rule (harness/analysis/duels/estimate.py). alike: the "
        f"whole interval lies within {ALIKE:.0%}; undecided: it holds zero and reaches further. efficiency: throughput "
        "over that of the other times the ratio of workers, measured side by side, with the same interval.",
    )


def _efficiency(item: Mapping[str, Any]) -> str:
    ends = item.get("efficiency")
    if not ends:
        return DASH
    if ends["low"] is None:
        return percent(ends["value"], 1)
    return f"{percent(ends['value'], 1)} ({ends['low'] * 100:.1f} to {percent(ends['high'], 1)})"
