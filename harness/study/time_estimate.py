"""How long a study will take, and which of its runs can use the same processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.common.formatting import duration, is_number, joined, plural
from harness.job.declaration import Job
from harness.records import soundness
from harness.records.record_files import JOB, RESULT, runs_of
from harness.records.run_record import RecordedRun
from harness.study.study_file import Study, run_name


def estimate(jobs: Sequence[Job], results: Path) -> tuple[float | None, str]:
    """Seconds that `jobs` will take by earlier runs of the same preset, data and workers under `results` (of the same
    engine where there are any), and where that is from. None where no earlier run can tell."""
    past: list[tuple[tuple[Any, ...], float, float]] = []  # (key, seconds outside training, seconds a sample)
    for study in sorted(results.iterdir()) if results.is_dir() else ():
        for folder in runs_of(study) if study.is_dir() else ():
            if soundness.damage(folder, (JOB, RESULT)):
                continue
            run = RecordedRun(folder)
            wall, train = run.result.get("wall_s"), (run.result.get("phases") or {}).get("train_s")
            recorded = run.job
            # Runs that shared the machine with others took longer than the next one will.
            alone = int(recorded.get("concurrent", 1)) == 1
            if run.ok and alone and is_number(wall) and is_number(train):
                samples = max(1, int(recorded.get("steps", 1)) * int(recorded.get("global_batch", 1)))
                key = (recorded.get("preset"), recorded.get("data"), run.workers, run.backend)
                past.append((key, wall - train, train / samples))
    if not past:
        return None, "no earlier run of this kind"
    total = 0.0
    for job in jobs:
        key = (job.preset, job.data, job.world_size, job.backend)
        for depth in (4, 3, 2):
            alike = [item for item in past if item[0][:depth] == key[:depth]]
            if alike:
                break
        else:
            return None, f"no earlier run of preset {job.preset} on {job.data}"
        outside = sorted(item[1] for item in alike)[len(alike) // 2]
        per_sample = sorted(item[2] for item in alike)[len(alike) // 2]
        total += outside + per_sample * job.steps * job.global_batch
    return total, f"from {plural(len(past), 'earlier run')}"


def estimate_study(
    study: Study, todo: Sequence[Job], results: Path, *, turns: bool = False
) -> tuple[float | None, str]:
    """`estimate` of what is left of a study; where no earlier run can tell, by the study's own [estimate]."""
    seconds, source = estimate(todo, results)
    if seconds is not None or study.declared is None:
        return seconds, source
    start_s, run_s = study.declared
    starts = len(groups_of(todo)) if turns else len(todo)
    text = f"{plural(starts, 'start')} of {start_s:g} s and {run_s:g} s a run, as the study says; {source}"
    return starts * start_s + len(todo) * run_s, text


def groups_of(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs that can use the same processes, in the order of their first."""
    from harness.launch.run import process_key

    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(process_key(job), []).append(job)
    return list(groups.values())


def plan_text(study: Study, todo: int, seconds: float | None, source: str) -> str:
    """What will be run and how long it takes, in one line."""
    engines = list(dict.fromkeys(run_name(job).split(f"-w{job.world_size}-")[0] for job in study.jobs))
    workers = sorted({job.world_size for job in study.jobs})
    repeats = 1 + max(job.repeat for job in study.jobs)
    text = (
        f"study {study.name}: {plural(len(study.jobs), 'run')} ({joined(engines)} x "
        f"{joined([str(count) for count in workers])} workers x {plural(repeats, 'repeat')})"
    )
    if todo < len(study.jobs):
        text += f", {len(study.jobs) - todo} done"
    if not todo:
        return text
    if seconds is None:
        return f"{text}; time unknown ({source}), estimated after the first run"
    return f"{text}; about {duration(seconds)} to go ({source})"
