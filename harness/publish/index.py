"""results/README.md: the studies that were really run, one line each, written by the program.

It stands between the markers ``<!-- studies -->`` and ``<!-- end -->``. A README.md without them is somebody else's,
and left alone.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness.analysis.caveats import findings
from harness.analysis.comparison import Comparison, summarize_study
from harness.analysis.known_faults.marks import mark_of
from harness.analysis.verdict import setting, verdict, without_speed
from harness.common.formatting import plural
from harness.job.declaration import JobError
from harness.publish import experiment_headlines, marked_text
from harness.records.record_files import RecordError, runs_of
from harness.report import notes

_STUDIES = "<!-- studies -->"
_BEFORE_MARKERS = "# Studies\n\nWritten by `harness index` from the records in this folder; do not edit."  # ... it had
_HEAD = """# Studies

Written by `harness results index` from the records in this folder; do not edit. Each study's folder holds every run
(job, environment, steps, resources, evaluation, result), `comparison.csv`, the plots and `report.html`. Re-check one
with `harness results check results/NAME`.
"""


def write_index(results: Path) -> Path:
    """Writes the index of the studies that there are into `results`/README.md and returns its path.

    Folders without runs are left out. Raises JobError where that file is not the program's, or cannot be written."""
    if not results.is_dir():
        raise JobError(f"{results}: no such folder: name the one that holds the studies by --results")
    path = results / "README.md"
    text = marked_text.read(path) if path.exists() else ""
    if not text or text.startswith(_BEFORE_MARKERS):
        text = f"{_STUDIES}\n{marked_text.END}\n"
    elif not any(line.rstrip() == _STUDIES for line in text.splitlines()):
        raise JobError(
            f"{path}: it is not from this program and left alone: put a line '{_STUDIES}' and a line "
            f"'{marked_text.END}' into it where the index is to stand, or name another --results"
        )
    index = "\n".join(_parts(results))
    filled = marked_text.replace_parts(
        path, text, re.compile(re.escape(_STUDIES) + r"[ \t]*"), lambda _marker, _old: index
    )
    marked_text.write(path, filled)
    return path


def _parts(results: Path) -> list[str]:
    parts = [_HEAD]
    for study in sorted(results.iterdir()):
        if not study.is_dir():
            continue
        try:
            # First: the folder of a measured table may hold its runs too.
            if found := experiment_headlines.headline_of(study):
                parts.append(_measured_entry(study, found))
            elif runs_of(study):
                parts.append(_entry(study, summarize_study(study)))
        except RecordError as error:
            parts.append(f"## {study.name}\n\nDamaged: {error}\n")
    if len(parts) == 1:
        parts.append("No study has been run yet.\n")
    return parts


def _entry(study: Path, comparison: Comparison) -> str:
    failed = int((comparison.frame["group"] == -1).sum())
    started = sorted(filter(None, (run.result.get("started") for run in comparison.runs)))
    found = findings(comparison)
    facts = [plural(len(comparison.runs), "run") + (f", {failed} failed" if failed else "")]
    facts += [started[0][:10]] if started else []
    lines = [f"## {study.name}", "", f"{setting(comparison)}; {', '.join(facts)}.", ""]
    mark = mark_of(study)
    if mark is not None and mark.superseded:
        lines += [f"- {sentence}" for sentence in (f"**{mark.sentence}**", *without_speed(comparison))]
    else:
        lines += [f"- {sentence}" for sentence in verdict(comparison, found)]
        lines += [f"- {mark.sentence}"] if mark is not None else []
        lines += notes.markdown(notes.notes_on(comparison.runs), "")
        lines += [f"- **{finding.text}**" for finding in found if finding.level == "wrong"]
    known = ("report.html", "comparison.csv", "scaling.png", "quality.md")
    files = [name for name in known if (study / name).exists()]
    lines += ["", "Files: " + ", ".join(f"[{name}]({study.name}/{name})" for name in files), ""] if files else [""]
    return "\n".join(lines)


def _measured_entry(study: Path, found: experiment_headlines.Headline) -> str:
    lines = [f"## {study.name}", "", f"{found.what}.", "", f"- {found.sentence}"]
    files = [name for name in found.files if (study / name).exists()]
    return "\n".join([*lines, "", "Files: " + ", ".join(f"[{name}]({study.name}/{name})" for name in files), ""])
