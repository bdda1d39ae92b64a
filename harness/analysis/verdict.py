"""The answer first: which engine for this job on this machine, in sentences with figures and their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.analysis import judged_speed, setting_effects
from harness.analysis.caveats import Finding
from harness.analysis.comparison import Comparison, PairedFigure
from harness.analysis.duels import sentences as duels
from harness.analysis.run_figures import HEADLINE, QUALITY_NAMES, crowded
from harness.common.formatting import change, joined, mebibytes, number, percent, plural, trained
from harness.records.run_record import RecordedRun

_SAME_MEMORY = 0.03


LIBRARIES = {"torch": "torch", "deepspeed": "DeepSpeed", "horovod": "Horovod"}  # whose versions belong beside a figure


def setting(comparison: Comparison) -> str:
    """``small on textures, 60 steps, global batch 8, strong scaling, fp32; AMD EPYC, 2 cores``: what was measured."""
    members = comparison.members(0) or list(comparison.runs)
    if not members:
        return "nothing was measured"
    job, place = members[0].job, members[0].environment
    most = max(run.workers for run in members) if all(run.job.get("nodes", 1) == 1 for run in members) else None
    batch = (
        f"global batch {job.get('global_batch')}"
        if job.get("scaling") != "weak"
        else f"{int(job.get('global_batch', 0)) // members[0].workers} samples per worker"
    )
    mode = "" if job.get("precision") == "fp32" else f" ({job.get('precision_mode')})"
    parts = [
        trained(job),
        plural(int(job.get("steps", 0)), "step"),
        batch,
        f"{job.get('scaling')} scaling",
        f"{job.get('precision')}{mode}",
    ]
    return f"{', '.join(parts)}; {machine(place, most)}"


def machine(place: dict[str, Any], used: int | None = None) -> str:
    """``2x NVIDIA H100 80GB HBM3``, ``2 of 4x NVIDIA H200`` where so many were `used`, or ``AMD EPYC, 2 cores``."""
    devices = (place.get("gpus") or {}).get("devices") or []
    if devices:
        names = [str(device.get("name")) for device in devices]
        some = f"{used} of " if used is not None and used < len(names) else ""
        return some + " and ".join(f"{names.count(name)}x {name}" for name in dict.fromkeys(names))
    cpu = place.get("cpu") or {}
    return f"{cpu.get('model') or 'unknown processor'}, {plural(int(cpu.get('usable_cores') or 0), 'core')}"


def verdict(comparison: Comparison, found: Sequence[Finding] = ()) -> list[str]:
    """Sentences, the most important first; speed and scaling by the study's duels where it has them. Says "alike" where
    the whole interval lies near zero, "undecided" where it holds zero and reaches further."""
    if not len(comparison.main) or not (comparison.main["ok"] > 0).any():
        failed = int((comparison.frame["group"] == -1).sum())
        return [f"No run ended well ({failed} failed): there is nothing to compare. The reasons are listed below."]
    if comparison.duels is not None:
        sentences = duels.speed(comparison.duels)
        sentences += setting_effects.sentences(judged_speed.variants(comparison))
    else:
        sentences = _speed(comparison)
        sentences += setting_effects.sentences(comparison.variants)
        sentences += _scaling(comparison)
    sentences += _memory(comparison)
    sentences += _quality(comparison)
    if any(finding.code == "unusable-answers" for finding in found):
        sentences.append("UNUSABLE ANSWERS: a run does not answer Yes or No; its answer accuracy means nothing.")
    beside = [finding for finding in found if finding.code == "foreign-load"]
    if beside and comparison.duels is None:  # beside duels it stands in their own sentences
        sentences.append(f"OTHER WORK ran on the machine: {beside[0].text}")
    wrong = [finding for finding in found if finding.level == "wrong"]
    if wrong:
        sentences.append(f"{plural(len(wrong), 'serious problem')} listed below: read before using these figures.")
    return sentences


def without_speed(comparison: Comparison) -> list[str]:
    """What can be said of a study whose speed cannot be used: memory and quality."""
    return _memory(comparison) + _quality(comparison)


def speed_sentence(pair: PairedFigure) -> str:
    """``Horovod is 4.0 % faster than DeepSpeed ZeRO-1 at 2 workers (95 % CI 2.0 to 6.1 %, 3 interleaved pairs).``"""
    difference, at = pair.difference, f"at {plural(pair.workers, 'worker')}"
    if not difference.real:
        if difference.a.startswith("Horovod") and difference.b.startswith("DeepSpeed"):  # always told the same way
            return speed_sentence(_turned(pair))
        against = f"{difference.b} against {difference.a} {change(difference.value)}"
        if difference.undecided:
            return (
                f"Undecided {at}: {against} ({difference.interval(1)}, {difference.basis()}); more --repeats on a "
                "quiet machine would tell."
            )
        return f"Alike in speed {at}: {against} ({difference.interval()}, {difference.basis()})."
    if difference.value < 0:  # say who is faster, not who is slower
        return speed_sentence(_turned(pair))
    if difference.value >= 1 and difference.low is not None and difference.high is not None:
        return (
            f"{difference.b} trains {1 + difference.value:.2f} times as many samples/s as {difference.a} {at} "
            f"(95 % CI {1 + difference.low:.2f} to {1 + difference.high:.2f} times, {difference.basis()})."
        )
    return (
        f"{difference.b} is {percent(difference.value, 1)} faster than {difference.a} {at} "
        f"({difference.interval()}, {difference.basis()})."
    )


def _tie_sentence(fastest: str, equal: Sequence[PairedFigure]) -> str:
    """Two or more engines that the measurement cannot tell from the fastest, in one sentence."""
    turned = [facing(pair, pair.difference.a).difference for pair in equal]  # every other one against the fastest
    others = joined([f"{other.b} ({change(other.value)}, {other.interval()})" for other in turned])
    at = plural(equal[0].workers, "worker")
    if all(other.alike for other in turned):
        return f"Alike in speed at {at}: {fastest} and {others}; {turned[0].basis()}."
    return (
        f"Undecided at {at}: {fastest} trained the most samples/s, but cannot be told from {others}; "
        f"{turned[0].basis()}, more --repeats on a quiet machine would tell."
    )


def _profile(run: RecordedRun) -> str:
    """The kinds of operation that take most of a profiled step of rank 0."""
    kinds = run.profile["ranks"][0]["kinds_ms"]
    whole = sum(kinds.values())
    most = sorted(kinds, key=lambda kind: -kinds[kind])[:3]
    shares = joined([f"{kind} ({kinds[kind] / whole:.0%})".replace("%", " %") for kind in most])
    return f"Most of {run.name}'s {number(whole)} ms a step on {run.label} went into {shares}."


def _speed(comparison: Comparison) -> list[str]:
    """The fastest at the most workers against the others there, then whether the order holds at fewer workers."""
    pairs = [pair for pair in comparison.speed if pair.group == 0]
    main = comparison.main[comparison.main["samples_per_s"].notna()]
    if not len(main):
        if profiled := [run for run in comparison.runs if run.profile.get("ranks")]:
            return [_profile(run) for run in profiled]
        if any(int(run.job.get("concurrent") or 1) > 1 for run in comparison.members(0)):
            return ["Only quality was measured: the runs shared the machine."]
        if any(map(crowded, comparison.members(0))):
            return ["Speed was not measured: there were more workers than cores."]
        return ["No step was timed."]
    if not pairs:
        best = main.sort_values("samples_per_s").iloc[-1]
        at = plural(int(best["workers"]), "worker")
        rate = f"{best['label']} trains {number(best['samples_per_s'])} samples/s at {at}"
        beside = main[main["workers"] == best["workers"]]["label"].nunique() > 1
        why = "no other engine ran in the same repeat" if beside else "there is no second engine at equal workers"
        return [f"{rate}; {why}."]
    most = max(pair.workers for pair in pairs)
    at_most = [pair for pair in pairs if pair.workers == most]
    ordered = main[main["workers"] == most].sort_values("samples_per_s")["label"]
    compared = {label for pair in at_most for label in (pair.difference.a, pair.difference.b)}
    fastest = [label for label in ordered if label in compared][-1]
    with_fastest = [facing(pair, fastest) for pair in at_most if fastest in (pair.difference.a, pair.difference.b)]
    with_fastest.sort(key=lambda pair: pair.difference.value)
    equal = [pair for pair in with_fastest if not pair.difference.real]
    slower = [pair for pair in with_fastest if pair.difference.real]
    sentences = [_tie_sentence(fastest, equal)] if len(equal) > 1 else [speed_sentence(pair) for pair in equal]
    if ordered.iloc[-1] != fastest:
        at = plural(most, "worker")
        sentences.append(
            f"{ordered.iloc[-1]} trained the most samples/s at {at}, but no other engine ran in its repeats."
        )
    sentences += [speed_sentence(pair) for pair in slower[:4]]
    sentences += [speed_sentence(pair) for pair in _of_interest(main[main["workers"] == most], at_most, fastest)]
    for workers in sorted({pair.workers for pair in pairs} - {most}, reverse=True):
        first = with_fastest[0].difference
        here = [p for p in pairs if p.workers == workers and {p.difference.a, p.difference.b} == {first.a, first.b}]
        sentences += [speed_sentence(facing(pair, fastest)) for pair in here[:1]]
    return sentences


def _of_interest(main: Any, pairs: Sequence[PairedFigure], fastest: str) -> list[PairedFigure]:
    """The fastest Horovod against the fastest DeepSpeed where a third engine is faster than both: they are what this
    harness compares. main: the cells at one number of workers."""
    best = fastest_of_both(main)
    if not best or fastest in (labels := [cell["label"] for cell in best]):
        return []
    return [facing(pair, labels[1]) for pair in pairs if {pair.difference.a, pair.difference.b} == set(labels)]


def fastest_of_both(cells: Any) -> list[Any]:
    """The fastest cell of DeepSpeed and of Horovod, in this order, of cells at one number of workers; [] where one is
    missing."""
    ordered = cells.sort_values("samples_per_s")
    own = [ordered[ordered["backend"] == backend] for backend in ("deepspeed", "horovod")]
    return [of_one.iloc[-1] for of_one in own] if all(map(len, own)) else []


def _scaling(comparison: Comparison) -> list[str]:
    """Efficiency at the most workers; where the study holds the other kind of scaling too, that one as well, with the
    difference in speed there."""
    sentences: list[str] = []
    kinds = comparison.cells.drop_duplicates("scaling") if len(comparison.cells) else comparison.cells
    for group, kind in zip(kinds.get("group", ()), kinds.get("scaling", ()), strict=True):
        cells = comparison.cells[(comparison.cells["group"] == group) & (comparison.cells["workers"] > 1)]
        if not len(cells):
            continue
        most = int(cells["workers"].max())
        here = cells[cells["workers"] == most]
        sentences += _efficiency_sentences(here, most, "" if len(kinds) == 1 else str(kind))
        if group:
            fastest = here.sort_values("samples_per_s").iloc[-1]["label"]
            pairs = [p for p in comparison.speed if p.group == group and p.workers == most]
            own = [facing(p, fastest) for p in pairs if fastest in (p.difference.a, p.difference.b)]
            sentences += [f"{str(kind).capitalize()} scaling: {speed_sentence(pair)}" for pair in own[:2]]
    return sentences


def _efficiency_sentences(cells: Any, workers: int, kind: str) -> list[str]:
    """Of cells at one number of workers: against plain torch on one worker, the baseline that all have in common; where
    the study has none, each engine's share of its own one worker, and that these do not compare engines."""
    scaling = f"{kind} scaling efficiency".strip().capitalize()
    for name, start, end in (
        ("efficiency", f"{scaling} at {workers} workers, against plain torch on one", ""),
        ("own_efficiency", f"{scaling} at {workers} workers, of each engine's own one worker",
         " Their baselines differ, so this does not say which engine scales better"),
    ):  # fmt: skip
        told = [
            f"{cell['label']} {percent(cell[name])} ({percent(cell[f'{name}_low']).removesuffix(' %')} to "
            f"{percent(cell[f'{name}_high'])})"
            for cell in cells[cells[name].notna()].to_dict("records")
        ]
        if told:
            return [f"{start}: {joined(told)}.{end}{'.' if end else ''}"]
    return []


def _memory(comparison: Comparison) -> list[str]:
    main = comparison.main[comparison.main["peak_memory_mib"].notna()]
    if not len(main):
        return []
    most = int(main["workers"].max())
    here = main[main["workers"] == most].sort_values("peak_memory_mib")
    if len(here) < 2:
        return []
    kind = "GPU memory" if here["peak_device_mib"].notna().all() else "memory"
    low, high = here.iloc[0], here.iloc[-1]
    saved = 1 - low["peak_memory_mib"] / high["peak_memory_mib"]
    amounts = f"{mebibytes(low['peak_memory_mib'])} against {mebibytes(high['peak_memory_mib'])}"
    if saved < _SAME_MEMORY:
        return [f"Peak {kind} of a worker is alike at {plural(most, 'worker')} ({amounts})."]
    at = plural(most, "worker")
    more = f"less {kind} per worker than {high['label']}"
    return [f"{low['label']} needs {percent(saved)} {more} at {at} ({amounts})."]


def _quality(comparison: Comparison) -> list[str]:
    """Whether the engines train equally well: they should, since they do the same arithmetic."""
    pairs = [pair for pair in comparison.quality if pair.group == 0 and pair.figure in QUALITY_NAMES]
    if not pairs:
        return []
    most = max(pair.workers for pair in pairs)
    here = [pair for pair in pairs if pair.workers == most and pair.figure in HEADLINE]
    real = [pair for pair in here if pair.difference.real]
    sentences = [_quality_sentence(pair) for pair in real]
    if not real and here:
        single = all(pair.difference.pairs < 2 for pair in here)
        widest = max(here, key=lambda pair: abs(pair.difference.value))
        if abs(widest.difference.value) < 5e-4:
            figures = joined(list(dict.fromkeys(QUALITY_NAMES[pair.figure] for pair in here)))
            return [f"Quality is the same at {plural(most, 'worker')}: {figures} agree to three digits."]
        largest = (
            f"largest gap {abs(widest.difference.value):.3f} in {QUALITY_NAMES[widest.figure]}, {widest.difference.a} "
            f"against {widest.difference.b}"
        )
        sentences.append(
            f"Quality at {plural(most, 'worker')}: {largest}; one seed each, so no interval."
            if single
            else f"{_quality_word(here)} at {plural(most, 'worker')} ({largest}, {widest.difference.interval(3)})."
        )
    return sentences


def _quality_word(pairs: Sequence[PairedFigure]) -> str:
    return "Quality alike" if all(pair.difference.alike for pair in pairs) else "Undecided in quality"


def _quality_sentence(pair: PairedFigure) -> str:
    difference = pair.difference
    word = "higher" if difference.value > 0 else "lower"
    return (
        f"{difference.b} has a {abs(difference.value):.3f} {word} {QUALITY_NAMES[pair.figure]} than {difference.a} at "
        f"{plural(pair.workers, 'worker')} ({difference.interval(3)}, {plural(difference.pairs, 'seed')})."
    )


def facing(pair: PairedFigure, label: str) -> PairedFigure:
    """`pair` with `label` as the side that is said to be faster."""
    return pair if pair.difference.b == label else _turned(pair)


def _turned(pair: PairedFigure) -> PairedFigure:
    """The same relative difference seen from the other side."""
    from dataclasses import replace

    old = pair.difference
    turned = replace(
        old,
        a=old.b,
        b=old.a,
        value=1 / (1 + old.value) - 1,
        low=None if old.high is None else 1 / (1 + old.high) - 1,
        high=None if old.low is None else 1 / (1 + old.low) - 1,
    )
    return replace(pair, difference=turned)
