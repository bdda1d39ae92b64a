"""Anybody can re-check a study from its records, without running anything again.

For each run: every file against its JSON Schema; the summary in result.json recomputed from steps.jsonl; the image
AUROC recomputed from the samples' scores and the answer accuracy from their answers; the contract derived again; the
sample ids unique. For the study: comparison.csv written again and compared; and the known faults of measurement
(`harness.analysis.known_faults`): a study that has one is refused, unless the program has marked it as superseded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.comparison import Comparison, summarize_study
from harness.analysis.known_faults import marks
from harness.analysis.known_faults.measured import measured_faults
from harness.analysis.known_faults.written import written_faults
from harness.common.formatting import is_number, joined
from harness.records import step_metrics
from harness.records.method import method_of
from harness.records.record_files import RESULT, STEPS, TORN, RecordError, is_run, read_json, runs_of
from harness.records.run_record import RecordedRun, load_runs
from harness.records.soundness import file_errors, schema_errors

if TYPE_CHECKING:
    import pandas as pd

_TOLERANCE = 1e-6  # relative; figures are recomputed in another order


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`where`: the file or run. `text`: what is wrong, one line."""

    where: str
    text: str


def check_runs(paths: Sequence[Path]) -> list[Problem]:
    """The problems of all runs of `paths` (runs, studies or folders of studies), none where every record holds."""
    paths = records_in(paths)
    problems: list[Problem] = []
    runs = load_runs([path for path in paths if is_run(path) or runs_of(path)])
    broken = set()
    for run in runs:
        if found := check_run(run):
            problems += found
            broken.add(run.folder)
    for path in paths:
        if not is_run(path) and runs_of(path):
            problems += _check_study(path)
        problems += _known_faults(path, [run for run in runs if run.folder not in broken])
    return problems


def records_in(paths: Sequence[Path]) -> list[Path]:
    """`paths`, a folder of studies (``results``) as the studies in it. Raises RecordError for what holds no record."""
    found: list[Path] = []
    for path in paths:
        inside = [] if _is_record(path) or not path.is_dir() else [each for each in path.iterdir() if _is_record(each)]
        if not inside and not _is_record(path):
            raise RecordError(f"{path}: neither a run nor a study nor a folder of studies: name a folder in results/")
        found += sorted(inside) or [path]
    return found


def _is_record(path: Path) -> bool:
    """Whether it is a run, a study of runs, or the folder of an experiment's table."""
    return path.is_dir() and (is_run(path) or bool(runs_of(path)) or any(path.glob("*.json")))


def _known_faults(path: Path, sound: Sequence[RecordedRun]) -> Iterator[Problem]:
    """The faults of a run or study that no mark owns up to, and a mark that says other than the records."""
    one = is_run(path)
    study = path.parent if one else path
    runs = [run for run in sound if run.folder == path.resolve() or (not one and run.folder.parent == path.resolve())]
    mark = marks.mark_of(study)
    marked = set(mark.rules) if mark is not None else set()
    faults = measured_faults(runs) + ([] if one else written_faults(study, runs))
    for fault in faults:
        if fault.rule not in marked:
            yield Problem(where=fault.where, text=fault.line)
    gone = [] if one else sorted(marked - {fault.rule for fault in faults})
    if gone:
        text = f"the records do not show {joined(gone)}: write the mark again with `harness results check --mark`"
        yield Problem(where=f"{study.name}/{marks.NAME}", text=text)


def check_run(run: RecordedRun) -> list[Problem]:
    """The problems of one run. A failed run must only have valid files and a reason."""
    problems = [Problem(where=f"{run.study}/{run.name}/{name}", text=text) for name, text in file_errors(run.folder)]
    if not (run.folder / RESULT).exists():
        text = "is missing: the run was killed before it could say how it ended"
        problems.append(Problem(where=f"{run.study}/{run.name}/{RESULT}", text=text))
    if problems or not run.ok:
        return problems
    where = f"{run.study}/{run.name}"
    return [Problem(where=where, text=text) for check in _CHECKS for text in check(run)]


def _summary(run: RecordedRun) -> Iterator[str]:
    """The throughput figures against steps.jsonl."""
    again = step_metrics.summarize(run.steps, int(run.job.get("timing_warmup", 0)))
    recorded = run.result.get("throughput") or {}
    if "total" in recorded or method_of(run.environment) >= 2:  # older records do not sum up their steps
        for key, value in (again["total"] or {}).items():
            if not _close(value, (recorded.get("total") or {}).get(key)):
                yield f"total.{key} is {(recorded.get('total') or {}).get(key)} in result.json, {value} by {STEPS}"
    for name in ("samples_per_s", "step_s", "data_s"):
        for key, value in again[name].items():
            if not _close(value, (recorded.get(name) or {}).get(key)):
                yield (f"{name}.{key} is {(recorded.get(name) or {}).get(key)} in result.json, {value} by {STEPS}")


def _steps(run: RecordedRun) -> Iterator[str]:
    """Every step once and in order, the last as the result says."""
    numbers = [row["step"] for row in run.steps]
    if numbers != list(range(numbers[0] if numbers else 0, (numbers[0] if numbers else 0) + len(numbers))):
        yield f"{STEPS}: steps are missing, repeated or out of order"
    final = (run.result.get("final") or {}).get("step")
    if numbers and final is not None and final != numbers[-1] + 1:
        yield f"result.json says {final} steps, {STEPS} ends with step {numbers[-1]}"
    batch = run.job.get("global_batch")
    if any(row["samples"] != batch for row in run.steps):
        yield f"{STEPS}: a step has another number of samples than the global batch of {batch}"


def _evaluation(run: RecordedRun) -> Iterator[str]:
    """Sample ids, image AUROC and answer accuracy from the samples; means over the categories."""
    samples = run.evaluation.get("samples") or []
    ids = [sample["id"] for sample in samples]
    if len(set(ids)) < len(ids):
        yield "evaluation.json: a sample id comes twice: the figures count it twice"
    mean = run.evaluation.get("mean") or {}
    if (run.result.get("evaluation") or {}) != mean:
        yield "result.json and evaluation.json do not give the same mean figures"
    categories = run.evaluation.get("categories") or {}
    for name, row in categories.items():
        own = [sample for sample in samples if sample["category"] == name]
        if not own:
            continue
        auroc = _auroc(own)
        if auroc is not None and not _close(auroc, row.get("image_auroc")):
            yield f"image AUROC of {name} is {row.get('image_auroc')} in evaluation.json, {auroc} by its samples"
        accuracy = _accuracy(own)
        if accuracy is not None and not _close(accuracy, row.get("answer_accuracy")):
            recorded = row.get("answer_accuracy")
            yield f"answer accuracy of {name} is {recorded} in evaluation.json, {accuracy} by its samples"
    for figure in ("image_auroc", "pixel_auroc", "answer_accuracy"):
        values = [row[figure] for row in categories.values() if is_number(row.get(figure))]
        if values and not _close(sum(values) / len(values), mean.get(figure)):
            yield f"the mean {figure} is {mean.get(figure)}, that of the categories {sum(values) / len(values)}"


def _contract(run: RecordedRun) -> Iterator[str]:
    """The recorded contract against one derived from the other files."""
    recorded, again = run.result.get("contract") or {}, run.derived_contract()
    for key in sorted(recorded.keys() | again.keys()):
        if key in recorded and recorded[key] != again.get(key):
            yield f"contract: {key} is {recorded[key]!r} in result.json, {again.get(key)!r} by the other records"


_CHECKS = (_steps, _summary, _evaluation, _contract)


def _check_study(study: Path) -> list[Problem]:
    """comparison.csv must be what the records give."""
    path = study / "comparison.csv"
    problems = []
    if (study / "study.json").exists():
        try:
            texts = schema_errors("study", read_json(study / "study.json"))
        except RecordError as error:
            texts = [str(error)]
        problems += [Problem(where=f"{study.name}/study.json", text=text) for text in texts]
    comparison = comparison_of(study)
    if path.exists() and comparison is not None:
        differing = _csv_differences(path.read_text(), comparison.cells)
        if differing:
            text = f"{differing} not what the records give: write it again with `harness report --format csv`"
            problems.append(Problem(where=f"{study.name}/comparison.csv", text=text))
    return problems


def comparison_of(study: Path) -> Comparison | None:
    """None where none of the study's runs can be read: what is wrong with each has been said."""
    try:
        return summarize_study(study)
    except RecordError:
        return None


def _csv_differences(text: str, cells: pd.DataFrame) -> str:
    """Which columns of a comparison.csv differ from the cells, in words; columns that only one of the two has (of an
    older or newer program) are not compared. Empty where none differs."""
    import io

    import pandas as pd

    written = pd.read_csv(io.StringIO(text))
    again = pd.read_csv(io.StringIO(cells.to_csv(index=False, float_format="%.10g")))
    if len(written) != len(again):
        return f"{len(written)} rows where there are {len(again)} cells,"
    shared = [name for name in written.columns if name in again.columns]
    differing = [name for name in shared if not written[name].equals(again[name])]
    return f"{joined(differing[:5])} {'are' if len(differing) > 1 else 'is'}" if differing else ""


def _auroc(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """AUROC of the scores by the Mann-Whitney count with ties as halves; None without both classes."""
    good = sorted(sample["score"] for sample in samples if not sample["is_defective"])
    bad = [sample["score"] for sample in samples if sample["is_defective"]]
    if not good or not bad or any(not is_number(score) for score in [*good, *bad]):
        return None
    from bisect import bisect_left, bisect_right

    wins = sum((bisect_left(good, score) + bisect_right(good, score)) / 2 for score in bad)
    return wins / (len(good) * len(bad))


def _accuracy(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of answers that begin with the right Yes or No (defective = yes), as core_model.metrics reads them."""
    from core_model.metrics.answers import NO, YES, judge

    asked = [sample for sample in samples if sample.get("answer") is not None]
    if not asked:
        return None
    return sum(judge(sample["answer"]) == (YES if sample["is_defective"] else NO) for sample in asked) / len(asked)


def _close(a: float | None, b: float | None) -> bool:
    if not is_number(a) or not is_number(b) or a is None or b is None:
        return a is None and b is None
    return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=1e-9)


def notes_on(paths: Sequence[Path]) -> list[str]:
    """What a reader of checked records must know though it is no problem, one line each."""
    notes = []
    for path in paths:
        if not is_run(path) and (mark := marks.mark_of(path)) is not None:
            notes.append(f"{path.name}: {mark.sentence}")
    for each in filter(None, (comparison_of(path) for path in paths if not is_run(path))):
        for group, reasons in enumerate(each.comparability.reasons):
            if group:
                notes.append(f"group {group + 1} of {each.title} is not comparable: {'; '.join(reasons)}")
    for run in load_runs([path for path in paths if is_run(path) or runs_of(path)]):
        notes += [f"{run.study}/{run.name}/{name}: {TORN}" for name in run.torn]
    return notes
