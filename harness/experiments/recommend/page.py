"""A recommendation as one screen of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core_model.user_job.source import label_of, source_of
from harness.common.formatting import DASH, joined, number
from harness.experiments.recommend.recommend import TOO_LARGE

WIDTH = 100
_LABEL = 22  # of a setting in the table; the lines below it name settings in full
_COLUMNS = ("setting", "peak GiB", "weigh.", "grads", "optim.", "activ.", "fits", "samples/s", "basis")


def text(answer: Mapping[str, Any]) -> str:
    """The screen: at most 100 columns."""
    lines = [_job(answer), f"{answer['machine']['told']}.", ""]
    lines += _table(answer["settings"])
    lines += ["", *_fastest(answer), *_reasons(answer)]
    if answer["sizes"]["kept_bytes"] is None:
        lines.append(f"Activations are not known: {answer['sizes']['how']}. Peaks are at least what is shown.")
    if answer["scores"]:
        lines += _wrapped(f"How far off such figures are, by docs/recommend.md: {answer['scores']}")
    else:
        lines.append("No record says how far off such figures are (docs/recommend.md).")
    if answer["fastest"]:
        lines += ["Measure it:", *_shell_lines(command(answer))]
    return "\n".join(lines) + "\n"


def command(answer: Mapping[str, Any]) -> str:
    """The comparison of the fastest settings, as it is typed."""
    job = answer["job"]
    what = "--preset" if source_of(str(job["preset"])) is None else "--model"
    words = ["harness compare", what, str(job["preset"]), "--backends", ",".join(answer["fastest"])]
    words += ["--workers", str(answer["machine"]["workers"]), "--global-batch", str(job["global_batch"])]
    if job["precision"] != "fp32":
        words += ["--precision", str(job["precision"])]
    words += ["--random-weights"] if job["random_weights"] else []
    return " ".join(words)


def _job(answer: Mapping[str, Any]) -> str:
    job, sizes = answer["job"], answer["sizes"]
    frozen = sizes["parameters"] - sizes["trained"]
    told = f"{label_of(str(job['preset']))}: {_millions(sizes['trained'])} parameters trained"
    told += f", {_millions(frozen)} frozen" if frozen else ""
    micro = sizes["micro_batch"]
    return f"{told}; {job['precision']}, {micro} sample{'s' * (micro != 1)} a worker and step."


def _table(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [list(_COLUMNS)]
    for one in settings:
        memory, speed = one["memory"], one["speed"]
        rows.append(
            [
                _cut(_short(one["label"])),
                f"{_gib(memory['peak_mib'])} ({_bound(memory['low_mib'])}-{_bound(memory['high_mib'])})"
                if memory["way"] != "measured"
                else f"{_gib(memory['peak_mib'])} measured",
                *(_gib(memory[f"{name}_mib"]) for name in ("weights", "gradients", "optimizer", "activations")),
                memory["fits"],
                _rate(speed),
                speed["way"] if memory["fits"] != TOO_LARGE else "",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    left = {0, len(_COLUMNS) - 1}
    return [
        " ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _fastest(answer: Mapping[str, Any]) -> list[str]:
    by_engine = {one["engine"]: one for one in answer["settings"]}
    chosen = [by_engine[engine] for engine in answer["fastest"]]
    if not chosen:
        none_fits = all(one["memory"]["fits"] == TOO_LARGE for one in answer["settings"])
        if none_fits:
            return ["None fits: try --activation-checkpointing, fewer samples a worker, or more workers."]
        return ["The fastest is not known: no speed stands on anything."]
    told = ", ".join(f"{place}. {one['engine']}" for place, one in enumerate(chosen, 1))
    lines = _wrapped(f"Fastest (as --backends takes them): {told}.")
    first, *others = chosen
    bounded = all(one["speed"]["low"] is not None for one in chosen)
    overlap = [one["label"] for one in others if _overlap(first["speed"], one["speed"])]
    if others and not bounded:
        lines.append("One duel gives no interval: that order is not certain. A longer --budget fights more.")
    elif overlap:
        lines += _wrapped(f"The first one's interval meets that of {joined(overlap)}: that order is not certain.")
    return lines


def _overlap(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a["low"] is not None and b["high"] is not None and bool(b["high"] >= a["low"])


def _reasons(answer: Mapping[str, Any]) -> list[str]:
    """What the speeds stand on, one line a reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for one in answer["settings"]:
        if one["memory"]["fits"] != TOO_LARGE:
            by_reason.setdefault((one["speed"]["way"], one["speed"]["why"]), []).append(one["label"])
    lines = []
    for (way, why), labels in by_reason.items():
        lines += _wrapped(f"{', '.join(map(_short, labels))}: {way}, {why}.")
    return lines


def _wrapped(line: str) -> list[str]:
    import textwrap

    return textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _short(label: str) -> str:
    """``ZeRO-2, optimizer on CPU``: DeepSpeed is meant wherever a ZeRO stage is named."""
    return label.removeprefix("DeepSpeed ")


def _cut(label: str) -> str:
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def _shell_lines(typed: str) -> list[str]:
    """A command on lines that a shell takes as one."""
    import textwrap

    lines = textwrap.wrap(typed, WIDTH - 2, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _rate(speed: Mapping[str, Any]) -> str:
    if speed["value"] is None:
        return "not known"
    if speed["low"] is None:
        return f"{number(speed['value'])} (no interval)"
    return f"{number(speed['value'])} ({number(speed['low'])}-{number(speed['high'])})"


def _gib(value: float | None) -> str:
    if value is None:
        return DASH
    gib = value / 1024
    return f"{gib:.0f}" if gib >= 99.5 else f"{gib:.1f}" if gib >= 0.95 else f"{gib:.2f}"


def _bound(value: float | None) -> str:
    """An end of an interval: no more digits than it deserves."""
    return f"{value / 1024:.0f}" if value is not None and value >= 9.5 * 1024 else _gib(value)


def _millions(count: int) -> str:
    return f"{number(count / 1e9)} B" if count >= 1e9 else f"{number(count / 1e6)} M"
