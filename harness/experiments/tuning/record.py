"""What tuning gave: tuning.json (all of it), tuned.toml (what `harness compare` takes) and tuning.md (to be read)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.tuning import spelled
from harness.analysis.duels.record import bounds
from harness.common.formatting import DASH, duration, plural
from harness.common.text_table import Table, markdown
from harness.job.declaration import JobError
from harness.records.record_files import read_json, write_json, write_text
from harness.study.tuned_file import SCHEMA, TunedEngine, TunedFile, deciding, this_machine, write

NAME, TUNED, PAGE = "tuning.json", "tuned.toml", "tuning.md"
FOREIGN = 0.05  # share of the cores above which foreign load is said


def begin(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """The record in `folder` to go on with, or a new one. Raises JobError where the folder holds tuning of another job
    or machine, so that one file never mixes them."""
    from harness.records.step_metrics import environment

    machine, versions = this_machine()
    fresh = {
        "job": deciding(job), "machine": machine, "versions": versions, "environment": environment(), "engines": [],
    }  # fmt: skip
    if not (folder / NAME).exists():
        return fresh
    old = read_json(folder / NAME)
    for key in ("job", "machine", "versions"):
        if old.get(key) != fresh[key]:
            raise JobError(f"{folder / NAME}: is of another {key.rstrip('s')}: choose another --study, or remove it")
    return old


def put(record: dict[str, Any], entry: Mapping[str, Any]) -> None:
    """Adds what tuning one engine gave; an entry of the same engine, settings and workers is replaced."""
    same = ("backend", "given", "workers")
    kept = [item for item in record["engines"] if any(item[key] != entry[key] for key in same)]
    record["engines"] = [*kept, dict(entry)]


def write_all(record: Mapping[str, Any], folder: Path) -> None:
    """All three files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, {**record, "headline": headline(record)})
    write(tuned_file(record), folder / TUNED)
    write_text(folder / PAGE, page(record))


def tuned_file(record: Mapping[str, Any]) -> TunedFile:
    """What `harness compare` takes of a record."""
    return TunedFile(
        schema=SCHEMA,
        job=record["job"],
        machine=record["machine"],
        versions=record["versions"],
        engine=tuple(_entry(item) for item in record["engines"]),
    )


def _entry(item: Mapping[str, Any]) -> TunedEngine:
    found = item["difference"] or {}
    return TunedEngine(
        backend=item["backend"],
        workers=item["workers"],
        given=item["given"],
        settings=item["settings"],
        verdict="faster" if item["settings"] else f"as it comes: {item['reason']}",
        value=found.get("value"),
        low=found.get("low"),
        high=found.get("high"),
        tried=len(measured(item)),
        duels=len(item["duels"]),
        parity=item["parity"],
        lost=tuple(
            {"settings": trial["settings"], "value": trial["value"], "reason": trial["lost"]}
            for trial in item["trials"]
            if trial["lost"]
        ),
    )


def measured(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials that were reached within the budget."""
    return [trial for trial in item["trials"] if trial["value"] is not None]


def name_of(item: Mapping[str, Any]) -> str:
    """``deepspeed:zero_stage=2@2``: engine, settings that were asked for, workers."""
    engine = ":".join(filter(None, (item["backend"], spelled(item["given"]))))
    return f"{engine}@{item['workers']}"


def sentence(item: Mapping[str, Any]) -> str:
    """What came out for one engine."""
    name, found = name_of(item), item["difference"]
    if not item["settings"]:
        tried = plural(len(measured(item)), "trial")
        return f"{name}: it stays as it comes ({item['reason']}; {tried})."
    gain = f"{found['value'] * 100:+.1f} % samples/s ({bounds(found)})"
    equal = f"weights equal the single process's to {item['parity']:.0e}"
    return f"{name}: {gain} with {spelled(item['settings'])}; {equal}."


def headline(record: Mapping[str, Any]) -> str:
    """All engines in one line, for the index."""
    return " ".join(sentence(item) for item in record["engines"])


def page(record: Mapping[str, Any]) -> str:
    """Markdown: what came out, then a table an engine."""
    job = record["job"]
    setting = (
        f"{job['preset']} on {job['data']}, {job['precision']}, {job['global_batch']} samples a step"
        f"{' and worker' if job['scaling'] == 'weak' else ''}; {record['machine']['hardware']}, "
        f"{record['machine']['cores']} cores."
    )
    parts = [
        "# Each engine at its best",
        setting,
        "\n".join(f"- {sentence(item)}" for item in record["engines"]),
        *(markdown(table(item)) for item in record["engines"]),
        "\n".join(f"- {text}" for item in record["engines"] for text in remarks(item, record["machine"]["cores"])),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(item: Mapping[str, Any]) -> Table:
    """The trials of one engine, the fastest first."""
    trials = sorted(item["trials"], key=lambda trial: -(trial["value"] if trial["value"] is not None else -1.0))
    rows = [
        [
            trial["name"],
            DASH if trial["value"] is None else f"{trial['value'] * 100:+.1f} %",
            str(sum(trial["rounds"])),
            trial["lost"] or "tuned setting",
            trial["why"],
            trial["source"],
        ]
        for trial in trials
    ]
    return Table(
        id=f"trials-{item['backend']}-{item['workers']}",
        title=f"What was tried: {name_of(item)}",
        columns=["setting", "samples/s in the search", "rounds", "how it ended", "why it may help", "source"],
        rows=rows,
        note="samples/s in the search: against the engine as it comes, in the same rounds; the best of many noisy "
        "figures is too good, so the figure that counts is the one of fresh duels above.",
    )


def remarks(item: Mapping[str, Any], cores: int) -> list[str]:
    """How sure the figures are: the engine against itself, time spent, foreign load."""
    name, apart = name_of(item), item["calibration"]["value"]
    spent = f"{plural(len(item['duels']), 'duel')} in {duration(item['seconds'])}"
    found = [f"{name}: against itself it came out at {apart * 100:+.1f} % in one short duel; {spent}."]
    foreign = max(duel["foreign_cores"] for duel in item["duels"])
    if foreign > FOREIGN * cores:
        found.append(f"{name}: other programs kept up to {foreign:.2f} of {cores} cores busy during a duel.")
    return found
