"""duel.md and the tables of duels: what was trained where, the verdicts, totals and differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.analysis.duels.record import Record, bounds, remarks, sentence, told_by, totals
from harness.analysis.intervals import ALIKE
from harness.analysis.mfu import utilization
from harness.analysis.verdict import machine
from harness.common.formatting import DASH, number, percent, plural, trained
from harness.common.text_table import Table, markdown


def page(record: Record) -> str:
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
    job, pace = record["job"], record["pace"]
    place = machine(dict(record.get("environment") or {}))
    what = f"{trained(job)}, {job['precision']} ({job['precision_mode']}), {job['scaling']} scaling"
    rounds = f"{plural(len(record['duels']), 'duel')} of {pace['rounds']} rounds"
    block = f"a block is {pace['steps']} optimizer steps after a warm-up of {pace['warmup']}"
    return f"{what}; {place}. {rounds}; {block}."


def headline(record: Mapping[str, Any]) -> str:
    """The verdicts in one line, for the index."""
    return " ".join(sentence(item) for item in record["differences"])


def _totals_table(record: Mapping[str, Any]) -> Table:
    rates = totals(record)
    told = told_by(record)
    rows = []
    uses = {kind: _utilizations(record, kind, rates, told) for kind in ("useful", "done")}
    counted = any(uses["useful"].values())
    for item in record["contenders"]:
        memory = [value for value in (told.get(item["name"]) or {}).get("device_mib") or [] if value is not None]
        final = ((told.get(item["name"]) or {}).get("losses") or [None])[-1]
        rows.append(
            [
                item["name"],
                str(item["workers"]),
                str(item["global_batch"]),
                number(rates.get(item["name"]), 4),
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
            "peak memory",
            "last loss",
            *(("MFU", "hardware use") if counted else ()),
        ],
        rows=rows,
        note="samples/s: all samples over all seconds of the timed blocks, every duel. Peak memory: on the device of "
        "the worker that needs most."
        + (" MFU: share of the GPU's peak rate spent on what the real tokens need; hardware use: on all." * counted),
    )


def _utilizations(
    record: Record, kind: str, rates: Mapping[str, float], told: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | None]:
    """Contender -> share of its GPUs' peak, None where unknown. kind: as of `utilization`."""
    found = {}
    for side in record["contenders"]:
        name = side["name"]
        result = {"flops": (told.get(name) or {}).get("flops"), "world_size": side["workers"]}
        job = {**record["job"], "precision": side["precision"]}
        found[name] = utilization(kind, job, result, record.get("environment") or {}, rates.get(name))
    return found


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
        note="interval: Student's t over the duels, by Stein's rule (analysis/duels/estimate.py). alike: the whole "
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
