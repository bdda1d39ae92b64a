"""results/STUDY/notes.md: what the authors of a study say of it, such as a cause looked up in an engine's source.

The only words beside a study that no program wrote, so they are shown as such: one line ``- ...`` a note, no figures
(those are measured), and where a note names a cause, the file and function that show it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.records.run_record import RecordedRun

NOTES = "notes.md"
HEADING = "Why, as the authors see it"
_STUDY = re.compile(r"(?<![\w/.])\.\./([\w-]+)")


def notes_in(study: Path) -> list[str]:
    """The notes of a study's folder, without their dashes; [] where there are none. A note may go on over indented
    lines."""
    file = study / NOTES
    if not file.is_file():
        return []
    found: list[str] = []
    for line in file.read_text().splitlines():
        if line.startswith("- "):
            found.append(line[2:].strip())
        elif line.startswith("  ") and found:
            found[-1] += f" {line.strip()}"
    return found


def notes_on(runs: Iterable[RecordedRun]) -> list[str]:
    """The notes of every study that the runs belong to."""
    return [note for study in dict.fromkeys(run.folder.parent for run in runs) for note in notes_in(study)]


def markdown(notes: Sequence[str], studies: str = "../") -> list[str]:
    """Lines that say `notes` under their heading, after an empty line; [] where there are none. A note names another
    study as ``../STUDY``; studies: what stands before STUDY in a link from where the lines go."""
    linked = [_STUDY.sub(lambda match: f"[{match[1]}]({studies}{match[1]})", note) for note in notes]
    return ["", f"{HEADING}:", "", *(f"- {note}" for note in linked)] if notes else []
