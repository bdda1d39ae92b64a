"""Reading an answer's text: does it say Yes or No, and which place does it name?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from core_model.data.questions import PLACES
from core_model.metrics.ranking import NO_MASKS, Figure

YES, NO, UNUSABLE = "yes", "no", "unusable"

_FIRST_WORD = re.compile(r"\s*[\"'(*]*(yes|no)\b", re.IGNORECASE)
_SYNONYMS = {"upper": "top", "lower": "bottom", "centre": "center", "middle": "center"}
# Longer names first, or "top" would be found in "top left". "the center of the left side" is not understood.
_PLACE = re.compile(r"\b(" + "|".join(re.escape(name) for name in sorted(PLACES, key=len, reverse=True)) + r")\b")


def judge(answer: str) -> str:
    """``yes`` (defective) or ``no`` by the answer's first word, else ``unusable``."""
    found = _FIRST_WORD.match(answer)
    return found.group(1).lower() if found else UNUSABLE


def places_in(answer: str) -> tuple[str, ...]:
    """Names of cells of the 3x3 grid in the order of the text, each once."""
    text = re.sub(r"[-\s]+", " ", answer.lower())
    text = re.sub(r"[a-z]+", lambda word: _SYNONYMS.get(word.group(), word.group()), text)
    text = re.sub(r"\b(top|bottom|left|right) center\b", r"\1", re.sub(r"\bcenter (left|right)\b", r"\1", text))
    return tuple(dict.fromkeys(_PLACE.findall(text)))


def answer_figures(entries: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Figures of the answers in `entries` (``answer``, ``is_defective``, ``place``); answer None = not asked.

    answer_accuracy: share of right Yes/No; an unusable answer is wrong. answer_balanced_accuracy: mean of the shares
    among good and among defective pictures, which a model that always says Yes holds at 0.5. place_accuracy: of the
    defective pictures, those whose answer names first a cell that holds the defect. place_chance: what naming the one
    most frequent cell every time would reach. unusable_answers: how many (a count).
    """
    names = ("answer_accuracy", "answer_balanced_accuracy", "unusable_answers", "place_accuracy", "place_chance")
    asked = [entry for entry in entries if entry.get("answer") is not None]
    if not asked:
        return dict.fromkeys(names, Figure(None, "no answers were generated"))
    verdicts = [judge(entry["answer"]) for entry in asked]
    right = [
        (verdict == YES) if e["is_defective"] else (verdict == NO) for verdict, e in zip(verdicts, asked, strict=True)
    ]
    good = [ok for ok, entry in zip(right, asked, strict=True) if not entry["is_defective"]]
    bad = [ok for ok, entry in zip(right, asked, strict=True) if entry["is_defective"]]
    figures = {
        "answer_accuracy": Figure(_mean(right)),
        "answer_balanced_accuracy": Figure((_mean(good) + _mean(bad)) / 2)
        if good and bad
        else Figure(None, "needs both good and defective pictures"),
        "unusable_answers": Figure(float(verdicts.count(UNUSABLE))),
    }
    located = [(places_in(entry["answer"]), places_in(entry["place"])) for entry in asked if entry["place"]]
    if not located:
        undrawn = any(entry["is_defective"] and entry.get("mask", True) is None for entry in asked)
        nothing = Figure(None, NO_MASKS if undrawn else "needs a defective picture")
        return {**figures, "place_accuracy": nothing, "place_chance": nothing}
    hits = [bool(said) and said[0] in true for said, true in located]
    frequent = Counter(cell for _, true in located for cell in true).most_common(1)[0][1]
    return {
        **figures,
        "place_accuracy": Figure(_mean(hits)),
        "place_chance": Figure(frequent / len(located)),
    }


def verdict_counts(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many answers say yes, no, or neither."""
    counts = Counter(judge(entry["answer"]) for entry in entries if entry.get("answer") is not None)
    return {name: counts.get(name, 0) for name in (YES, NO, UNUSABLE)}


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
