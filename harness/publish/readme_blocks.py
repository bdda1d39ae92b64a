"""The measured part of README.md: filled by `harness results index` from the records, never typed by hand.

README.md holds a pair of comment lines a study, ``<!-- study NAME -->`` and ``<!-- end -->``; what stands between them
is replaced by the study's setting, verdict, notes and table (of duels: by their differences);
``<!-- study NAME short -->``: by setting and verdict; ``<!-- answers NAME NAME ... -->``: by the table of
`harness.publish.answers`; ``<!-- duels NAME NAME ... -->``: by that of `harness.publish.duel_rows`. A study that is
marked as superseded has its mark, what does not depend on its speed, and no row.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from harness.analysis.caveats import findings
from harness.analysis.comparison import Comparison, summarize_study
from harness.analysis.duels import page as duels
from harness.analysis.duels.record import NAME as DUEL
from harness.analysis.duels.record import PAGE as DUEL_PAGE
from harness.analysis.duels.record import remarks
from harness.analysis.known_faults.marks import mark_of
from harness.analysis.verdict import LIBRARIES, setting, verdict, without_speed
from harness.common.formatting import joined
from harness.common.text_table import markdown, without_empty_columns
from harness.publish import marked_text
from harness.publish.answers import answers, seen_from
from harness.publish.duel_rows import side_by_side
from harness.records.record_files import read_json, runs_of
from harness.report import notes
from harness.report.comparison_table import comparison_table
from mpi import names

_OPENING = re.compile(
    r"<!-- (?:study (?P<study>[\w.-]+)(?P<short> short)?|(?P<table>answers|duels) (?P<names>[\w.-]+(?: [\w.-]+)*)) -->"
    r"[ \t]*"
)
_NOT_YET = "(not run yet: results/{})\n"


def fill(readme: Path, results: Path) -> bool:
    """Writes the parts of `readme` whose study is in `results`; True where its text changed.

    A part that has text stays as it is where its study is not there: the file may be about other results. Raises
    JobError where a marker has no end (`harness.publish.marked_text`).
    """
    text = marked_text.read(readme)
    summarize = cache(summarize_study)  # a study may stand in several blocks

    def body(match: re.Match[str], old: str) -> str:
        named = [match["study"]] if match["study"] else match["names"].split()
        studies = [results / name for name in named if not names.fault("study", name)]
        there = [study for study in studies if runs_of(study)]
        if match["study"] and studies and (studies[0] / DUEL).exists() and not runs_of(studies[0]):
            return _duel_body(studies[0], readme.parent)
        if match["table"] == "duels":
            fought = [study for study in studies if (study / DUEL).exists()]
            return markdown(side_by_side(fought, readme.parent)) if fought else old
        if not there:
            return old or (_NOT_YET.format(match["study"]) if match["study"] else old)
        if match["names"]:
            return markdown(answers(there, readme.parent, summarize))
        return _body(there[0], summarize(there[0]), readme.parent, short=bool(match["short"]))

    filled = marked_text.replace_parts(readme, text, _OPENING, body)
    if filled != text:
        marked_text.write(readme, filled)
    return filled != text


def _body(study: Path, comparison: Comparison, root: Path, *, short: bool) -> str:
    where = seen_from(root, study)
    lines = [f"*{setting(comparison)}; {_versions(comparison)}*", ""]
    mark = mark_of(study)
    superseded = mark is not None and mark.superseded
    if mark is not None and superseded:
        lines += [f"- {sentence}" for sentence in (f"**{mark.sentence}**", *without_speed(comparison))]
    else:
        lines += [f"- {sentence}" for sentence in verdict(comparison, findings(comparison))]
    links = f"[report]({where}/report.html), [records]({where})"
    if (study / "quality.md").is_file():
        links += f", [every branch and number of shots]({where}/quality.md)"
    if short or superseded:
        return "\n".join([*lines, "", links, ""])
    lines += notes.markdown(notes.notes_in(study), f"{where.parent}/")
    table = replace(without_empty_columns(comparison_table(comparison)), title="", note="")
    lines += ["", markdown(table).strip(), "", links, ""]
    return "\n".join(lines)


def _duel_body(study: Path, root: Path) -> str:
    record = read_json(study / DUEL)
    where = seen_from(root, study)
    versions = record["environment"].get("versions") or {}
    used = {"torch", *(item["backend"] for item in record["contenders"])}
    told = [f"{name} {versions[package]}" for package, name in LIBRARIES.items() if package in used & versions.keys()]
    lines = [f"*{duels.setting(record)} {', '.join(told)}.*", ""]
    lines += [markdown(replace(without_empty_columns(duels.differences_table(record)), title="", note="")).strip(), ""]
    lines += [f"- {text}" for text in remarks(record)]
    lines += notes.markdown(notes.notes_in(study), f"{where.parent}/")
    report = f"[report]({where}/report.html), " if (study / "report.html").exists() else ""
    return "\n".join([*lines, "", f"{report}[figures and memory]({where}/{DUEL_PAGE}), [records]({where}/{DUEL})", ""])


def _versions(comparison: Comparison) -> str:
    """``torch 2.11.0+cu130, DeepSpeed 0.19.8, Horovod 0.28.1, 2026-11-26``: what the main group's runs ran with."""
    runs = comparison.members(0) or list(comparison.runs)
    used = {run.backend for run in runs}
    told = []
    for package, name in LIBRARIES.items():
        if package == "torch" or package in used:
            found = {str((run.environment.get("versions") or {}).get(package)) for run in runs}
            told.append(f"{name} {joined(sorted(found))}")
    started = sorted(str(run.result.get("started"))[:10] for run in runs if run.result.get("started"))
    return ", ".join([*told, *started[:1]])
