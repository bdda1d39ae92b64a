"""The words of a report and what they mean, and links from where a word stands to its meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class Term:
    """id: of its place in the page. forms: as it is written in sentences, lower case, the longest first."""

    id: str
    name: str
    forms: tuple[str, ...]
    meaning: str


TERMS = (
    Term(
        id="engine",
        name="engine",
        forms=("engines", "engine"),
        meaning="The library that makes several workers train one model: Horovod, DeepSpeed, or PyTorch itself (DDP, "
        "FSDP2; plain torch, in tables Single process, is PyTorch on one worker without any of them).",
    ),
    Term(
        id="worker",
        name="worker",
        forms=("workers", "worker"),
        meaning="One process of a training, with its own GPU or its own share of the processor. Each worker trains a "
        "part of every batch, then all exchange gradients.",
    ),
    Term(
        id="throughput",
        name="throughput, samples/s",
        forms=("samples/s", "samples per second", "throughput"),
        meaning="All samples of the timed steps divided by all seconds that they took, waiting for data included. Of "
        "several measurements: the geometric mean.",
    ),
    Term(
        id="duel",
        name="duel",
        forms=("duels", "duel"),
        meaning="One start of all engines at the same time on the same machine. They take turns in blocks of a few "
        "steps, in random order, on the same samples, so a busy machine hits all alike. Several duels catch what "
        "differs from start to start.",
    ),
    Term(
        id="interval",
        name="95 % interval (95 % CI)",
        forms=("95 % interval", "95 % ci", "intervals", "interval"),
        meaning="The range that the measurement cannot tell apart. Of 100 such ranges about 95 hold the true value. "
        "Narrow: the measurement is sharp. It needs at least two duels or repeats.",
    ),
    Term(
        id="repeat",
        name="repeat, pair",
        forms=("interleaved pairs", "interleaved repeats", "repeats", "pairs", "repeat"),
        meaning="One whole training of each engine, right after one another, with its own seed. The trainings of two "
        "engines in one repeat are a pair.",
    ),
    Term(
        id="faster",
        name="faster, slower, real",
        forms=(),
        meaning="The whole interval of the difference lies on one side of zero.",
    ),
    Term(
        id="alike",
        name="alike",
        forms=("alike",),
        meaning="The whole interval lies within 5 % either way: the engines are equally fast for every practical end.",
    ),
    Term(
        id="undecided",
        name="undecided",
        forms=("undecided",),
        meaning="The interval holds zero and reaches beyond 5 %. This does not mean that the engines are equal: it "
        "means that more measuring is needed.",
    ),
    Term(
        id="calibration",
        name="calibration",
        forms=("calibration",),
        meaning="Plain torch measured against itself by the same method. It must come out alike; if not, the other "
        "differences cannot be trusted.",
    ),
    Term(
        id="efficiency",
        name="scaling efficiency",
        forms=("scaling efficiency", "efficiency"),
        meaning="Throughput of N workers divided by N times the throughput of plain torch on one worker. 100 %: N "
        "workers are N times as fast. Own baseline: divided by the engine's own one worker instead, which does not "
        "compare engines.",
    ),
    Term(
        id="weak",
        name="weak and strong scaling",
        forms=("weak scaling", "strong scaling"),
        meaning="Weak: each worker's batch stays the same, so more workers train more samples a step. Strong: the "
        "whole batch stays the same and is divided among the workers.",
    ),
    Term(
        id="zero",
        name="ZeRO-1, ZeRO-2, ZeRO-3",
        forms=("zero-1", "zero-2", "zero-3"),
        meaning="Stages of DeepSpeed's way to save memory: the workers share out the optimizer's state (1), also the "
        "gradients (2), also the weights (3). ZeRO-0 shares out nothing.",
    ),
    Term(
        id="all-reduce",
        name="all-reduce",
        forms=("all-reduces", "all-reduce"),
        meaning="The exchange after which every worker holds the sum (or mean) of all workers' gradients. ZeRO does "
        "the same in two parts: reduce-scatter and all-gather.",
    ),
    Term(
        id="mfu",
        name="useful MFU, hardware use",
        forms=("useful mfu", "mfu", "hardware use"),
        meaning="Model FLOPs utilization: the operations that the real tokens need, divided by what the GPUs could do "
        "at most. Hardware use counts all operations done, also on padding and repeated ones.",
    ),
    Term(
        id="auroc",
        name="AUROC",
        forms=("image auroc", "pixel auroc", "aurocs", "auroc"),
        meaning="How well a score tells defective from good, for whole pictures (image) or pixels (pixel): 1 is "
        "perfect, 0.5 is chance.",
    ),
)
_FORMS = {form: term for term in TERMS for form in term.forms}
_WORD = re.compile(
    r"(?<![\w-])(" + "|".join(map(re.escape, sorted(_FORMS, key=len, reverse=True))) + r")(?![\w-])", re.IGNORECASE
)


def linked(text: str, mentioned: list[str] | None = None) -> Markup:
    """`text` as HTML, the first mention of each term a link to its meaning. mentioned: ids of terms that earlier texts
    have linked; those of this one are added."""
    from markupsafe import Markup

    seen = [] if mentioned is None else mentioned
    parts, end = [], 0
    for match in _WORD.finditer(text):
        term = _FORMS[match[0].lower()]
        if term.id not in seen:
            seen.append(term.id)
            parts.append(escape(text[end : match.start()]))
            parts.append(f'<a class="term" href="#term-{term.id}">{escape(match[0])}</a>')
            end = match.end()
    return Markup("".join([*parts, escape(text[end:])]))
