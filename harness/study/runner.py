"""Runs what is left of a study: one run after another, several by the same processes, in turns or several at a time."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from harness.common.formatting import duration, joined, plural
from harness.job.declaration import Job, JobError
from harness.protocol.console import tell
from harness.protocol.turns import Stop
from harness.records import soundness
from harness.records.locks import check_free, hold, release
from harness.records.record_files import JOB, LOG, RESULT, runs_of, write_json
from harness.records.run_record import RecordedRun
from harness.study.study_file import STUDY, Study
from harness.study.time_estimate import estimate_study, groups_of, plan_text
from mpi import names
from mpi.process import CTRL_C, INTERRUPTS, signals_ignored, signals_raise

# What the worker fills in, or what does not decide the figures: two jobs that differ only here are one job.
_FILLED_IN = ("run", "image_size", "launcher", "resume", "timeout_s", "time_limit_s", "hostfile", "study")


def same_job(asked: Job, recorded: Mapping[str, Any]) -> bool:
    """Whether a recorded job.json is what `asked` asks for, up to what the worker fills in."""
    wanted = asked.to_dict()
    return all(recorded.get(key) == value for key, value in wanted.items() if key not in _FILLED_IN) and (
        asked.image_size in (0, recorded.get("image_size"))
    )


def find_finished(study: Path, jobs: Sequence[Job]) -> dict[str, RecordedRun]:
    """Run name -> the best recorded run of that job in `study`: an ok one, else a failed or an interrupted one.

    Raises JobError where a folder of that name holds an ok run of another job: the study was asked for differently.
    """
    recorded = [RecordedRun(folder) for folder in _readable(study, {job.run for job in jobs})]
    found: dict[str, RecordedRun] = {}
    for job in jobs:
        same = [run for run in recorded if same_job(job, run.job)]
        same.sort(key=lambda run: (not run.ok, run.name))
        if same:
            found[job.run] = same[0]
            continue
        for run in recorded:
            if run.name == job.run:
                changed = [key for key, value in job.to_dict().items() if run.job.get(key) != value]
                keys = ", ".join(key for key in changed if key not in _FILLED_IN)
                raise JobError(f"{run.folder}: holds a run with other settings ({keys}): choose another --study")
    return found


def _readable(study: Path, names: Collection[str]) -> list[Path]:
    """The study's run folders whose job and result can be read. Raises JobError where another is one of `names`."""
    found = []
    for folder in runs_of(study):
        damage = soundness.damage(folder, (JOB, RESULT))
        if damage and folder.name in names:
            raise JobError(f"{folder}: {damage}: remove that folder, and the run is done again")
        found += [] if damage else [folder]
    return found


def preflight_all(jobs: Sequence[Job], *, here: bool = True) -> None:
    """All that can be refused of any job is refused before the first run: of jobs that differ by seed, repeat and name
    alone, one is looked at. here: they are to run on this machine, not only planned."""
    from harness.launch import run as launch
    from harness.launch.preflight import check_choices

    alike = {json.dumps(job.with_(seed=0, repeat=0, run="").to_dict(), sort_keys=True): job for job in jobs}
    for job in alike.values():
        launch.preflight(job) if here else check_choices(job)


def interrupted(run: RecordedRun) -> bool:
    """Whether the run was stopped from outside, or never began, so that it says nothing of its engine."""
    return _was_ended(run) or run.result.get("status") == "running" or not (run.folder / RESULT).exists()


def _was_ended(run: RecordedRun) -> bool:
    """Whether a signal to the study ended the run."""
    return run.result.get("exit_code") in INTERRUPTS


def run_study(
    study: Study,
    results: Path,
    *,
    retry_failed: bool = False,
    turns: bool = False,
    concurrent: int = 1,
    show: bool = True,
) -> Path:
    """Runs what is not done yet and returns the study's folder. A failing job is recorded and the next one starts; an
    interrupt ends the study at once (SystemExit with 130): the same command goes on from there.
    turns: runs that want the same engine and workers use the same processes, which all start at the same time
    (`harness.protocol.turns`).
    concurrent: so many runs at a time, for studies of quality on a machine with room; their times are never shown."""

    if concurrent > 1:
        study = replace(study, jobs=tuple(job.with_(concurrent=concurrent) for job in study.jobs))

    folder = results / study.name
    check_free(folder, f"study {study.name}")
    todo, done = what_is_left(folder, study, retry_failed)
    _check_free(todo, done)
    preflight_all(todo)
    _take_study(folder, study)
    try:
        # Once more: another process may have had the study meanwhile.
        todo, done = what_is_left(folder, study, retry_failed)
        _check_free(todo, done)
        seconds, source = estimate_study(study, todo, results, turns=turns)
        _say(show, plan_text(study, len(todo), seconds, source))
        if concurrent > 1 or turns:
            # As Ctrl-C: what runs in other processes must be told to end.
            with signals_raise(lambda _: KeyboardInterrupt(), signal.SIGTERM, signal.SIGHUP):
                if concurrent > 1:
                    _run_at_once(todo, done, results, concurrent, show)
                else:
                    _run_in_turns(todo, done, results, show)
        else:
            _run_one_by_one(study, todo, done, results, seconds=seconds, show=show)
    finally:
        release(folder)
    return folder


def what_is_left(folder: Path, study: Study, retry_failed: bool) -> tuple[list[Job], dict[str, RecordedRun]]:
    """The jobs to run, and the best recorded run of each that has one."""
    done = find_finished(folder, study.jobs)
    return [job for job in study.jobs if due(done.get(job.run), retry_failed)], done


def _check_free(todo: Sequence[Job], done: Mapping[str, RecordedRun]) -> None:
    """Raises HeldError where another process works on a run that would be done again."""
    for job in todo:
        if (old := done.get(job.run)) is not None:
            check_free(old.folder, f"run {old.study}/{old.name}")


def _run_one_by_one(
    study: Study,
    todo: Sequence[Job],
    done: Mapping[str, RecordedRun],
    results: Path,
    *,
    seconds: float | None,
    show: bool,
) -> None:
    """Runs `todo` in its order; seconds: what it will take."""
    from harness.launch import run as launch

    began = time.monotonic()
    for finished, job in enumerate(todo):
        _clear([job], done)
        passed = time.monotonic() - began
        left = passed / finished * (len(todo) - finished) if finished else seconds
        first = len(study.jobs) - len(todo) + finished + 1
        _say(show, f"[{first}/{len(study.jobs)}] {job.run}{_left(left)}")
        run = RecordedRun(launch.run_job(job, results, show=show))
        if _was_ended(run):
            _stop()
        if not run.ok:
            _say(show, _how(run))


def _run_at_once(
    todo: Sequence[Job], done: Mapping[str, RecordedRun], results: Path, concurrent: int, show: bool
) -> None:
    """Runs `todo`, up to `concurrent` at a time, each by a process of its own that supervises its launcher. An
    interrupt ends all of them; the runs that it ended are due again."""
    from concurrent.futures import as_completed

    from harness.study.turn_conductor import supervisors

    _clear(todo, done)
    stopped = False
    with tempfile.TemporaryDirectory(prefix="harness-at-once-") as scratch, supervisors(concurrent) as pool:
        stop = Stop(Path(scratch) / "stop")
        try:
            started = [pool.submit(_one_at_once, job, results, stop) for job in todo]
            for number, future in enumerate(as_completed(started), start=1):
                folder = future.result()
                assert folder is not None  # no stop has been given yet
                run = RecordedRun(folder)
                stopped = stopped or _was_ended(run)
                _say(show, f"[{number}/{len(todo)}] {run.name}: {_how(run)}")
                if stopped:
                    break
            if not stopped:
                return
        except KeyboardInterrupt:
            stopped = True
        finally:
            with signals_ignored():  # the pool takes in a few more than it has processes, which cancel() does not reach
                stop.give()
                pool.shutdown(cancel_futures=True)  # which, unlike wait(), also ends where a supervisor died starting
    _stop()


def _one_at_once(job: Job, results: Path, stop: Stop) -> Path | None:
    """In a process of its own: the run's folder, None where it was not to begin any more."""
    from harness.launch import run as launch

    return None if stop.is_given else launch.run_job(job, results, stop=stop)


def _run_in_turns(todo: Sequence[Job], done: Mapping[str, RecordedRun], results: Path, show: bool) -> None:
    """Runs `todo` in its order by processes that start once; failures are said, an interrupt ends the study."""
    from harness.study.turn_conductor import take_turns

    if not todo:
        return
    _clear(todo, done)
    groups = groups_of(todo)
    _say(show, f"{plural(len(todo), 'run')} by {plural(len(groups), 'start')}, taking turns")
    stopped = False
    began = time.monotonic()

    def on_turn(number: int, job: Job) -> None:
        left = (time.monotonic() - began) / number * (len(todo) - number) if number else None
        _say(show, f"[{number + 1}/{len(todo)}] {job.run}{_left(left)}")

    def on_end(job: Job, folder: Path) -> None:
        nonlocal stopped
        run = RecordedRun(folder)
        stopped = stopped or _was_ended(run)
        _say(show, f"{run.name}: {_how(run)}")

    def on_wait(names: list[str]) -> None:
        _say(show, f"waiting for the processes of {joined(names)} to start")

    try:
        take_turns(todo, groups, results, on_turn=on_turn, on_end=on_end, on_wait=on_wait)
    except KeyboardInterrupt:
        stopped = True
    if stopped:
        _stop()


def _clear(jobs: Sequence[Job], done: Mapping[str, RecordedRun]) -> None:
    """Removes the old records of `jobs`: interrupted, or failed and asked for again."""
    for job in jobs:
        if (old := done.get(job.run)) is not None:
            check_free(old.folder, f"run {old.study}/{old.name}")
            names.remove_folder(old.folder.parent, old.folder.name, kind="run")


def _how(run: RecordedRun) -> str:
    return "ok" if run.ok else f"failed: {run.reason} (see {run.folder / LOG})"


def _stop() -> NoReturn:
    """Ends an interrupted study."""
    _say(True, "interrupted: the same command goes on where it stopped")
    raise SystemExit(CTRL_C)


def due(run: RecordedRun | None, retry_failed: bool) -> bool:
    """Whether a job whose best recorded run is `run` is to be run: none, an interrupted one, or a failed one that is
    asked for again."""
    return run is None or (not run.ok and (interrupted(run) or retry_failed))


def _left(seconds: float | None) -> str:
    return f", about {duration(seconds)} left for the study" if seconds else ""


def _take_study(folder: Path, study: Study) -> None:
    """The study's folder, held for this process, with its study.json."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hold(folder, f"study {study.name}")
        write_json(folder / STUDY, study.to_dict())
    except OSError as error:
        raise JobError(f"{folder}: cannot write results there ({error.strerror}): use --results FOLDER") from None


def _say(show: bool, text: str) -> None:
    if show:
        tell(text)
