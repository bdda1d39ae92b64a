"""Warnings that a careful reader would raise, found by the program: unusable answers, same weights, stragglers, ...

Each finding names the run or cell, the figure and what to do. Levels: ``wrong`` (the figures must not be used as they
are), ``warning`` (they may mislead), ``note`` (worth knowing).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from harness.analysis import judged_speed
from harness.analysis.comparison import Comparison
from harness.analysis.known_faults.fault import SPEED
from harness.analysis.known_faults.measured import measured_faults
from harness.analysis.run_figures import crowded, untimed
from harness.common.formatting import duration, is_number, joined, milliseconds, percent, plural
from harness.instruments import foreign_load
from harness.records import step_metrics
from harness.records.record_files import TORN
from harness.records.run_record import RecordedRun

LEVELS = ("wrong", "warning", "note")
UNUSABLE_LIMIT = 0.05  # share of answers without Yes or No that makes an accuracy meaningless
_PAUSE_S = 900.0  # between paired runs, beyond what they took themselves
DATA_LIMIT = 0.10  # share of a step spent waiting for data above which the loader, not the engine, is compared


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`code` is stable, for tests and scripts; `text` is one or two sentences for people."""

    level: str
    code: str
    text: str


def findings(comparison: Comparison) -> list[Finding]:
    """All findings of a comparison, the most serious first."""
    runs = comparison.runs
    found: list[Finding] = []
    judged = comparison.duels is None  # else the duels say which engine is faster, not the trainings' times
    of_times = (_steadiness, _foreign_load) if judged else ()
    for check in (_unusable, _stragglers, _untimed, *of_times, _waits_for_data, _memory, _skipped, _own_warnings):
        for run in runs:
            if run.ok:
                found += check(run)
    found += _same_weights([run for run in runs if run.ok])
    found += _failed(runs)
    found += [Finding(level="wrong", code="damaged-record", text=text) for text in comparison.left_out]
    found += _torn(runs)
    found += _known_faults(runs)
    found += _unlike(comparison)
    found += _efficiencies(comparison)
    if judged:
        found += _repeats(comparison)
        found += _apart(comparison)
    found += _software(runs)
    return sorted(_merged(found), key=lambda finding: LEVELS.index(finding.level))


def _known_faults(runs: Sequence[RecordedRun]) -> Iterator[Finding]:
    """Faults of measurement that this program once had, of each study."""
    for study in dict.fromkeys(run.folder.parent for run in runs):
        for fault in measured_faults([run for run in runs if run.folder.parent == study]):
            level = "wrong" if SPEED in fault.figures else "warning"
            text = f"The {joined(fault.figures)} of {fault.where} cannot be used: {fault.text}."
            yield Finding(level=level, code=fault.rule, text=text)


def _torn(runs: Sequence[RecordedRun]) -> Iterator[Finding]:
    for run in runs:
        for name in run.torn:
            yield Finding(level="note", code="torn-record", text=f"{run.name}/{name}: {TORN}.")


def unusable_share(run: RecordedRun) -> float | None:
    """Share of the test answers that say neither Yes nor No, None where nothing was answered."""
    counts = [row.get("answers") or {} for row in (run.evaluation.get("categories") or {}).values()]
    asked = sum(sum(row.values()) for row in counts)
    return sum(row.get("unusable", 0) for row in counts) / asked if asked else None


def _unusable(run: RecordedRun) -> Iterator[Finding]:
    share = unusable_share(run)
    if share is None or share <= 0:
        return
    accuracy = (run.result.get("evaluation") or {}).get("answer_accuracy")
    text = f"{run.name}: {percent(share, 1)} of the answers say neither Yes nor No"
    if share > UNUSABLE_LIMIT:
        yield Finding(
            level="wrong",
            code="unusable-answers",
            text=f"{text}. Its answer accuracy ({percent(accuracy, 1)}) is not a figure of merit: the language "
            "part did not learn to answer (too few steps, broken template, divergence). The AUROCs do not show this.",
        )
    else:
        yield Finding(level="note", code="some-unusable-answers", text=f"{text}; they count as wrong.")


def _same_weights(runs: Sequence[RecordedRun]) -> Iterator[Finding]:
    """Trainings that cannot have ended in the same weights, but did, or whose figures are equal to the last digit."""
    for run in runs:
        hashes = run.result.get("hashes") or {}
        if hashes.get("weights") and hashes.get("weights") == hashes.get("init_weights"):
            yield Finding(
                level="wrong",
                code="untrained",
                text=f"{run.name}: its weights after training are its weights before it: nothing was learned or the "
                "wrong file was evaluated.",
            )
    for a, b in itertools.combinations(runs, 2):
        first, second = a.result.get("hashes") or {}, b.result.get("hashes") or {}
        if not _trained_apart(a, b):
            continue
        if first.get("weights") and first.get("weights") == second.get("weights"):
            reason = "ended in the same weights"
        elif _same_figures(a, b):
            reason = "gave every test sample the same score, to the last digit"
        else:
            continue
        yield Finding(
            level="wrong",
            code="same-weights",
            text=f"{a.name} and {b.name} are different trainings but {reason}: the same weights were evaluated twice.",
        )


def _trained_apart(a: RecordedRun, b: RecordedRun) -> bool:
    """Whether two runs differ in something that must change the weights. Engines and numbers of workers need not."""
    keys = ("seed", "steps", "lr", "version", "preset", "optimizer", "weight_decay", "precision", "data", "defects")
    if any(a.job.get(key) != b.job.get(key) for key in (*keys, "global_batch")):
        return True
    return (a.result.get("hashes") or {}).get("init_weights") != (b.result.get("hashes") or {}).get("init_weights")


def _same_figures(a: RecordedRun, b: RecordedRun) -> bool:
    """Equal AUROCs of both kinds and, where the samples are recorded, equal scores: AUROCs depend on ranks only, so on
    a small test set two trainings may share one by chance."""
    for name in ("image_auroc", "pixel_auroc"):
        first, second = ((run.result.get("evaluation") or {}).get(name) for run in (a, b))
        if first != second or not (is_number(first) or (first is None and name == "pixel_auroc")):
            return False  # without masks there is no pixel AUROC to compare
    scores, others = ({item["id"]: item["score"] for item in run.evaluation.get("samples") or ()} for run in (a, b))
    return scores == others


def _stragglers(run: RecordedRun) -> Iterator[Finding]:
    """From the sampled steps' own work by rank (`harness.instruments.step_timing`)."""
    own: dict[int, list[float]] = {}
    busy: dict[int, list[float]] = {}
    for row in () if untimed(run) else run.split:
        own.setdefault(int(row["rank"]), []).append(step_metrics.own_work_s(row))
        busy.setdefault(int(row["rank"]), []).append(step_metrics.launching_s(row))
    hosts = {item.get("rank"): item.get("hostname") for item in run.environment.get("ranks") or ()}
    on_gpu = any(str(rank.get("device")).startswith("cuda") for rank in run.environment.get("ranks") or ())
    for slow in step_metrics.stragglers(own):
        host = hosts.get(slow["rank"])
        where = f" on {host}" if host else ""
        yield Finding(
            level="warning",
            code="straggler",
            text=f"{run.name}: rank {slow['rank']}{where} needs {milliseconds(slow['own_s'])} ms for its own "
            f"part of a step, the others {milliseconds(slow['others_s'])} ms ({percent(slow['excess'])} "
            f"more): everybody waits for it. {_why_slow(slow['rank'], busy, on_gpu)}",
        )


def _why_slow(rank: int, busy: Mapping[int, Sequence[float]], on_gpu: bool) -> str:
    """Where to look, from what each rank's processor worked for the same kernels."""
    medians = {other: float(np.median(values)) for other, values in busy.items()}
    mine = medians.pop(rank)
    others = float(np.median(list(medians.values())))
    if not mine or not others:
        return "Look for other load, a throttled or different processor, a slow disk."
    told = f"Its processor worked {milliseconds(mine)} ms for the step, the others' {milliseconds(others)}"
    if mine > (1.0 + step_metrics.STRAGGLER_LIMIT) * others:
        # A launch into a full queue keeps the processor busy too, until the GPU has come so far.
        or_gpu = ", or a GPU that launches wait for" if on_gpu else ""
        return f"{told} for the same work: a slower, throttled or shared core{or_gpu}."
    if not on_gpu:
        return f"{told}: no slower, but kept from working. Look for other load, too few cores, a slow disk."
    return f"{told}: it is not its processor. Look for a throttled or different GPU, a slow disk, other load."


def _untimed(run: RecordedRun) -> Iterator[Finding]:
    """Why the times of a run are left out."""
    at_once = int(run.job.get("concurrent") or 1)
    if run.job.get("profile"):
        text = f"{run.name} ran with profile={run.job['profile']}: its times are left out everywhere."
        yield Finding(level="note", code="profiled", text=text)
    elif at_once > 1:
        others = plural(at_once - 1, "other run")
        text = f"{run.name} shared the machine with up to {others}: its quality counts, its times are left out "
        yield Finding(level="note", code="concurrent", text=f"{text}everywhere.")
    elif crowded(run):
        cores = run.environment["cpu"]["usable_cores"]
        text = f"{run.name}: {run.job['slots']} workers on {cores} cores, its times are left out everywhere."
        yield Finding(level="note", code="crowded", text=text)


def _steadiness(run: RecordedRun) -> Iterator[Finding]:
    """Too few timed steps, steps that became slower or faster, time between steps."""
    if untimed(run):
        return
    throughput = run.result.get("throughput") or {}
    timed = (throughput.get("step_s") or {}).get("n")
    if timed is not None and timed < step_metrics.MIN_STEPS:
        yield Finding(
            level="warning",
            code="few-steps",
            text=f"{run.name}: only {plural(timed, 'timed step')}; {step_metrics.MIN_STEPS} make a figure (--steps).",
        )
    change = throughput.get("drift")
    if is_number(change) and abs(change) > step_metrics.DRIFT_LIMIT:
        word, cause = ("slower", "throttling or other load") if change > 0 else ("faster", "the warm-up is too short")
        yield Finding(
            level="warning",
            code="drift",
            text=f"{run.name}: its steps became {percent(abs(change))} {word} from the first to the second half: "
            f"{cause}.",
        )
    whole = run.totals
    if whole is not None and whole.between_share > step_metrics.BETWEEN_LIMIT:
        yield Finding(
            level="warning",
            code="between-steps",
            text=f"{run.name}: {percent(whole.between_share)} of its timed seconds lie between steps (logging, "
            "checkpoints): samples/s says less of the engine; a larger --log-every, more work a step.",
        )


def _waits_for_data(run: RecordedRun) -> Iterator[Finding]:
    share = (run.result.get("throughput") or {}).get("data_share")
    if is_number(share) and share > DATA_LIMIT and not untimed(run):
        yield Finding(
            level="warning",
            code="data-bound",
            text=f"{run.name}: {percent(share)} of a step is waiting for data: this compares the loader, not the "
            "engine; more --loader-workers.",
        )


def _memory(run: RecordedRun) -> Iterator[Finding]:
    if run.result.get("memory") and not run.memory:
        yield Finding(
            level="note",
            code="memory-held",
            text=f"{run.name}: an earlier run of the same processes still held GPU memory: its memory is left out.",
        )


def _skipped(run: RecordedRun) -> Iterator[Finding]:
    rows = run.steps
    skipped = sum(bool(row.get("skipped")) for row in rows)
    if skipped and skipped > 0.02 * len(rows):
        yield Finding(
            level="warning",
            code="skipped-steps",
            text=f"{run.name}: {skipped} of {len(rows)} steps were skipped for fp16 overflow: they took time and "
            "taught nothing. A lower initial loss scale or bf16 avoids it.",
        )


def _foreign_load(run: RecordedRun) -> Iterator[Finding]:
    if not untimed(run):
        for line in foreign_load.said(run.result.get("hosts") or ()):
            yield Finding(level="warning", code="foreign-load", text=f"{run.name}: on {line}.")


def _own_warnings(run: RecordedRun) -> Iterator[Finding]:
    for text in run.result.get("warnings") or ():
        yield Finding(level="warning", code="worker", text=f"{run.name}: {text}")
    for text in run.evaluation.get("warnings") or ():
        if "unusable" not in text and "neither Yes nor No" not in text:  # said by `_unusable`
            yield Finding(level="warning", code="evaluation", text=f"{run.name}: {text}")


def _failed(runs: Sequence[RecordedRun]) -> Iterator[Finding]:
    for run in runs:
        if not run.ok:
            yield Finding(level="warning", code="failed", text=f"{run.name} failed: {run.reason}")


def _unlike(comparison: Comparison) -> Iterator[Finding]:
    for group, reasons in enumerate(comparison.comparability.reasons):
        if group:
            names = joined([run.name for run in comparison.members(group)][:4])
            more = len(comparison.members(group)) - 4
            yield Finding(
                level="warning",
                code="unlike",
                text=f"{names}{f' and {more} more' if more > 0 else ''} cannot stand on the same curve as the others "
                f"(group {group + 1}): {'; '.join(reasons[:6])}.",
            )


def _efficiencies(comparison: Comparison) -> Iterator[Finding]:
    """Efficiencies above 100 %, and studies whose engines have no baseline in common."""
    cells = judged_speed.cells(comparison)
    for cell in cells.to_dict("records"):
        for name in ("efficiency", "own_efficiency"):
            if is_number(cell[name]) and cell["workers"] > 1:
                text = step_metrics.efficiency_warning(cell[name], int(cell["workers"]), cell["scaling"])
                if text:
                    yield Finding(level="warning", code="super-linear", text=f"{cell['label']}: {text}.")
                    break
    main = cells[cells["group"] == 0] if len(cells) else cells
    several = len(main) and main["label"].nunique() > 1 and (main["workers"] > 1).any()
    if several and not (main["efficiency_pairs"] > 0).any():
        yield Finding(
            level="note",
            code="no-common-baseline",
            text="No repeat has plain torch on one worker (engine 'single'), so there is no scaling efficiency that "
            "compares engines: each engine's own one worker is a baseline of its own. Add 'single' to the study.",
        )


def _repeats(comparison: Comparison) -> Iterator[Finding]:
    main = comparison.main
    good = main[main["ok"] > 0] if len(main) else main
    if len(good) and (good["ok"] < step_metrics.MIN_REPEATS).any():
        fewest = int(good["ok"].min())
        yield Finding(
            level="note",
            code="few-repeats",
            text=f"Some cells have {plural(fewest, 'good run')}; {step_metrics.MIN_REPEATS} interleaved repeats make "
            "a difference between engines credible (--repeats).",
        )


def _apart(comparison: Comparison) -> Iterator[Finding]:
    """Paired runs that did not run right after one another: the pairing then cancels no drift of the machine."""
    cells: dict[tuple[int, int, int], list[RecordedRun]] = {}
    for run in comparison.members(0):
        cells.setdefault((run.workers, run.repeat, run.seed), []).append(run)
    for (workers, repeat, _), members in sorted(cells.items()):
        starts = sorted(filter(None, (_started(run) for run in members)))
        if len({run.label for run in members}) < 2 or len(starts) < 2:
            continue
        busy = sum(run.result.get("wall_s") or 0.0 for run in members)
        gap = starts[-1] - starts[0]
        if gap > 2 * busy + _PAUSE_S:
            names = joined([run.name for run in members][:4])
            yield Finding(
                level="warning",
                code="apart",
                text=f"{names}: repeat {repeat} at {plural(workers, 'worker')} is compared as a pair, but its "
                f"runs started {duration(gap)} apart: a drift of the machine is not cancelled.",
            )


def _started(run: RecordedRun) -> float | None:
    """When the run began, seconds since 1970."""
    try:
        return datetime.fromisoformat(str(run.result.get("started"))).timestamp()
    except ValueError:
        return None


def _software(runs: Sequence[RecordedRun]) -> Iterator[Finding]:
    commits = {str(commit) for run in runs if (commit := (run.environment.get("git") or {}).get("commit"))}
    if len(commits) > 1:
        yield Finding(
            level="note",
            code="commits",
            text=f"The runs come from {len(commits)} commits of this program: "
            f"{', '.join(sorted(commit[:9] for commit in commits))}.",
        )
    dirty = [run.name for run in runs if (run.environment.get("git") or {}).get("dirty")]
    if dirty:
        yield Finding(
            level="note",
            code="dirty",
            text=f"{plural(len(dirty), 'run')} came from a tree with uncommitted changes: the commit does not "
            "reproduce them exactly.",
        )


def _merged(found: Sequence[Finding]) -> list[Finding]:
    """Many runs with the same complaint become the first one and the others' names: a list of 200 would hide the one
    that matters."""
    by_code: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        by_code.setdefault((finding.level, finding.code), []).append(finding)
    merged = []
    for (level, code), members in by_code.items():
        kept = members if len(members) <= 3 else members[:1]
        merged += kept
        if len(members) > len(kept):
            said = [finding.text.split(":")[0].removesuffix(" failed") for finding in members[len(kept) :]]
            names = list(dict.fromkeys(said))  # a run with several slow ranks is named once
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            text = f"The same ({code}) of {plural(len(names), 'other run')}: {', '.join(names[:12])}{more}."
            merged.append(Finding(level=level, code=code, text=text))
    return merged
