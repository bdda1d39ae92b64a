"""The measured part of docs/recommend.md: between ``<!-- recommend errors -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from pathlib import Path

from harness.experiments.recommend.scores_record import block, read_scores
from harness.publish import marked_text

_OPENING = re.compile(r"<!-- recommend errors -->[ \t]*")


def fill(page: Path, results: Path) -> bool:
    """Writes the error tables into `page` from the scores in `results`; True where its text changed."""
    scores = read_scores(results)
    text = marked_text.read(page)
    filled = marked_text.replace_parts(page, text, _OPENING, lambda _match, old: block(scores) if scores else old)
    if filled != text:
        marked_text.write(page, filled)
    return filled != text
