"""`harness compare`: a study = engines x settings x workers x repeats, run interleaved, resumable, then reported.

A study is asked for by options or by a TOML file::

    name = "two-engines"            # folder in results/ (default: the file's name)
    title = "..."                   # optional, shown in the report
    backends = ["deepspeed:zero_stage=1", "horovod"]
    workers = [1, 2]                # world sizes; nodes is fixed, slots = workers / nodes
    repeats = 3
    seeds = [0, 1, 2]               # of repeat 0, 1, 2 (default: the job's seed + the repeat)
    [job]                           # any field of harness.job.Job
    preset = "small"
    steps = 60
    [matrix]                        # optional: every combination of these job fields
    precision = ["fp32", "bf16"]
    [estimate]                      # optional: what the plan goes by while no earlier run of this kind is recorded
    start_s = 20                    # seconds that a start of processes takes, and that a run takes besides
    run_s = 10

Within a repeat, engines run right after one another at each number of workers, and the order turns from repeat to
repeat (A B, B A, ...): a slow drift of the machine then hits all engines alike and cancels in the paired comparison.
"""

from __future__ import annotations

import itertools
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import click

from harness import records, words
from harness.folders import check_name
from harness.job import Job, JobError
from harness.options import job_options, job_values, parse_value, results_root
from harness.recorded import RecordedRun

STUDY = "study.json"
# What the worker fills in, or what does not decide the figures: two jobs that differ only here are one job.
_FILLED_IN = ("run", "image_size", "launcher", "resume", "timeout_s", "hostfile", "study")
_KEYS = {"name", "title", "backends", "workers", "repeats", "seeds", "job", "matrix", "estimate"}
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Study:
    """The jobs of a study in the order in which they are run. `title`: a sentence for the report, may be empty."""

    name: str
    jobs: tuple[Job, ...]
    title: str = ""
    declared: tuple[float, float] | None = None  # [estimate]: seconds of a start of processes, and of a run

    @classmethod
    def from_matrix(
        cls,
        *,
        name: str,
        backends: Sequence[str],
        workers: Sequence[int],
        repeats: int = 3,
        seeds: Sequence[int] = (),
        job: Mapping[str, Any] | None = None,
        matrix: Mapping[str, Sequence[Any]] | None = None,
        title: str = "",
        estimate: Mapping[str, float] | None = None,
    ) -> Study:
        """Every combination, validated. backends: ``name`` or ``name:key=value+key=value`` with the engine's settings.
        Raises JobError for the first that cannot work."""
        if not backends or not workers or repeats < 1:
            raise JobError("a study needs at least one engine, one number of workers and one repeat")
        engines = [parse_backend(text) for text in backends]
        if len({tuple(sorted(map(str, engine.items()))) for engine in engines}) < len(engines):
            raise JobError("the same engine with the same settings is listed twice: leave one out")
        base = dict(job or {})
        for field in ("slots", "repeat", "run", "study", "backend"):
            if field in base:
                raise JobError(f"'{field}' is decided by the study: leave it out of [job] and the options")
        jobs: list[Job] = []
        for repeat in range(repeats):
            seed = seeds[repeat % len(seeds)] if seeds else int(base.get("seed", 0)) + repeat
            for changes in _combinations(matrix or {}):
                for count in workers:
                    # Each repeat begins with the next engine.
                    turn = repeat % len(engines)
                    for engine in engines[turn:] + engines[:turn]:
                        values = {**base, **changes, "seed": seed, "repeat": repeat}
                        made = _job(name, engine, count, values, tuple(changes))
                        if made is not None:
                            jobs.append(made)
        if not jobs:
            raise JobError("no job is left: engine 'single' runs with one worker only, add 1 to --workers")
        return cls(name=check_name("study", name), jobs=tuple(jobs), title=title, declared=_declared(estimate))

    @classmethod
    def from_toml(cls, path: Path, **overrides: Any) -> Study:
        """The study that `path` declares; `overrides` (None = not given) replace its top-level keys, and those in
        ``job`` are merged into its job. Raises JobError that names an unreadable file or an unknown key."""
        try:
            declared = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise JobError(f"{path}: no such study file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise JobError(f"{path}: not a readable TOML file ({error})") from None
        for key in declared:
            if key not in _KEYS:
                raise JobError(f"{path}: unknown key '{key}': a study has {', '.join(sorted(_KEYS))}")
        declared.setdefault("name", path.stem)
        given = {name: value for name, value in overrides.items() if value is not None}
        job = {**declared.pop("job", {}), **given.pop("job", {})}
        values = {"backends": [], "workers": [1], **declared, **given}
        try:
            return cls.from_matrix(job=job, **values)
        except TypeError as error:
            raise JobError(f"{path}: {error}") from None

    @classmethod
    def from_record(cls, path: Path) -> Study:
        """The study that a study.json records: the same jobs in the same order, for doing it again elsewhere."""
        value = records.read_json(path)
        try:
            jobs = tuple(Job.from_dict(job).validate() for job in value["jobs"])
            return cls(name=check_name("study", value["name"]), jobs=jobs, title=value.get("title", ""))
        except (KeyError, TypeError) as error:
            raise JobError(
                f"{path}: not a study's record ({error}): name a study.json or a study's TOML file"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """For study.json: the resolved jobs in running order."""
        return {"name": self.name, "title": self.title, "jobs": [job.to_dict() for job in self.jobs]}


def _declared(estimate: Mapping[str, float] | None) -> tuple[float, float] | None:
    """The [estimate] of a study file. Raises JobError that names what is wrong in it."""
    if estimate is None:
        return None
    if set(estimate) != {"start_s", "run_s"} or not all(words.is_number(value) for value in estimate.values()):
        raise JobError("[estimate] has start_s and run_s, seconds of a start of processes and of a run")
    return float(estimate["start_s"]), float(estimate["run_s"])


def parse_backend(text: str) -> dict[str, Any]:
    """``deepspeed:zero_stage=1+overlap_comm=true`` as ``{"backend": ..., "engine": {...}}``."""
    name, _, settings = text.strip().partition(":")
    engine: dict[str, Any] = {}
    for part in filter(None, settings.split("+")):
        key, separator, value = part.partition("=")
        if not separator:
            raise JobError(f"engine setting '{part}' in '{text}': write it as KEY=VALUE")
        engine[key.strip()] = parse_value(value.strip())
    return {"backend": name, "engine": engine}


def _combinations(matrix: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of a matrix of job fields; one empty one for an empty matrix."""
    known = {field.name for field in fields(Job)}
    for key, values in matrix.items():
        if key not in known:
            raise JobError(f"[matrix] '{key}' is no job field: known are {', '.join(sorted(known))}")
        if not isinstance(values, list):
            raise JobError(f"[matrix] '{key}' must be a list of values")
    for values in itertools.product(*matrix.values()):
        yield dict(zip(matrix, values, strict=True))


def _job(
    study: str, engine: Mapping[str, Any], workers: int, values: dict[str, Any], varied: Sequence[str]
) -> Job | None:
    """The validated job of one cell and repeat, None where the engine cannot have that many workers."""
    if engine["backend"] == "single" and workers > 1:
        return None
    nodes = int(values.get("nodes", 1))
    if workers % nodes:
        raise JobError(f"{workers} workers cannot be spread evenly over {nodes} nodes: use a multiple of {nodes}")
    values = {**values, **engine, "slots": workers // nodes, "study": study}
    if values.get("scaling") == "weak":  # the batch that was asked for is one worker's
        values["global_batch"] = int(values.get("global_batch", Job.global_batch)) * workers
    job = Job.from_dict(values).validate()
    return job.with_(run=run_name(job, varied))


def run_name(job: Job, varied: Sequence[str] = ()) -> str:
    """Folder of a study's run: engine, settings, what the matrix varies, workers, precision, seed and repeat."""
    settings = [f"{key}-{value}" for key, value in sorted(job.engine.items()) if key != "zero_stage"]
    others = [f"{key}-{getattr(job, key)}" for key in varied if key not in ("precision", "seed")]
    engine, rest = job.default_run_name().split(f"-w{job.world_size}-", 1)
    text = "-".join([engine, *settings, *others, f"w{job.world_size}", rest])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:120]


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
    recorded = [RecordedRun(folder) for folder in records.runs_of(study)]
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


def interrupted(run: RecordedRun) -> bool:
    """Whether the run was stopped from outside, so that it says nothing of its engine."""
    return _was_ended(run) or run.result.get("status") == "running"


def _was_ended(run: RecordedRun) -> bool:
    """Whether a Ctrl-C or SIGTERM to the study ended the run."""
    return run.result.get("exit_code") in (INTERRUPTED, 143)


def estimate(jobs: Sequence[Job], results: Path) -> tuple[float | None, str]:
    """Seconds that `jobs` will take by earlier runs of the same preset, data and workers under `results` (of the same
    engine where there are any), and where that is from. None where no earlier run can tell."""
    past: list[tuple[tuple[Any, ...], float, float]] = []  # (key, seconds outside training, seconds a sample)
    for study in sorted(results.iterdir()) if results.is_dir() else ():
        for folder in records.runs_of(study) if study.is_dir() else ():
            try:
                run = RecordedRun(folder)
                wall, train = run.result.get("wall_s"), (run.result.get("phases") or {}).get("train_s")
                recorded = run.job
            except records.RecordError:
                continue
            # Runs that shared the machine with others took longer than the next one will.
            alone = int(recorded.get("concurrent", 1)) == 1
            if run.ok and alone and words.is_number(wall) and words.is_number(train):
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
    return total, f"from {words.plural(len(past), 'earlier run')}"


def estimate_study(
    study: Study, todo: Sequence[Job], results: Path, *, share: bool = False, turns: bool = False
) -> tuple[float | None, str]:
    """`estimate` of what is left of a study; where no earlier run can tell, by the study's own [estimate]."""
    seconds, source = estimate(todo, results)
    if seconds is not None or study.declared is None:
        return seconds, source
    start_s, run_s = study.declared
    starts = len(_groups(todo, by_repeat=not turns)) if share or turns else len(todo)
    text = f"{words.plural(starts, 'start')} of {start_s:g} s and {run_s:g} s a run, as the study says; {source}"
    return starts * start_s + len(todo) * run_s, text


def run_study(
    study: Study,
    results: Path,
    *,
    retry_failed: bool = False,
    share: bool = False,
    turns: bool = False,
    concurrent: int = 1,
    show: bool = True,
) -> Path:
    """Runs what is not done yet and returns the study's folder. A failing job is recorded and the next one starts; an
    interrupt ends the study at once (click.exceptions.Exit with 130): the same command goes on from there.
    share: the runs of a repeat that want the same engine and workers use the same processes, one after another.
    turns: those of all repeats do, and all processes start at the same time (`harness.turns`).
    concurrent: so many runs at a time, for studies of quality on a machine with room; their times are never shown."""
    from harness import launch

    if concurrent > 1:
        study = replace(study, jobs=tuple(job.with_(concurrent=concurrent) for job in study.jobs))

    folder = results / study.name
    done = find_finished(folder, study.jobs)
    todo = [job for job in study.jobs if _due(done.get(job.run), retry_failed)]
    for job in {(job.backend, job.world_size): job for job in todo}.values():
        launch.preflight(job)  # all that can be refused is refused before the first run
    _write_study(folder, study)
    seconds, source = estimate_study(study, todo, results, share=share, turns=turns)
    _say(show, plan_text(study, len(todo), seconds, source))
    if concurrent > 1:
        _run_at_once(todo, done, results, concurrent, show)
        return folder
    if turns:
        _run_in_turns(todo, done, results, show)
        return folder
    began = time.monotonic()
    finished = 0
    for group in _groups(todo) if share else [[job] for job in todo]:
        _clear(group, done)
        passed = time.monotonic() - began
        left = passed / finished * (len(todo) - finished) if finished else seconds
        first = len(study.jobs) - len(todo) + finished + 1
        _say(show, f"[{first}/{len(study.jobs)}] {', '.join(job.run for job in group)}{_left(left)}")
        if len(group) == 1:
            folders = [launch.run_job(group[0], results, show=show)]
        else:
            folders = launch.run_jobs(group, results, show=show)
        finished += len(group)
        for run in map(RecordedRun, folders):
            if _was_ended(run):
                _stop()
            if not run.ok:
                _say(show, _how(run))
    return folder


def _run_at_once(
    todo: Sequence[Job], done: Mapping[str, RecordedRun], results: Path, concurrent: int, show: bool
) -> None:
    """Runs `todo`, up to `concurrent` at a time, each by a process of its own that supervises its launcher. An
    interrupt reaches all of them (one process group); the runs that it ended are due again."""
    from concurrent.futures import as_completed

    from harness import launch
    from harness.turns import supervisors

    _clear(todo, done)
    stopped = False
    with supervisors(concurrent) as pool:
        started = {pool.submit(launch.run_job, job, results): job for job in todo}
        try:
            for number, future in enumerate(as_completed(started), start=1):
                run = RecordedRun(future.result())
                stopped = stopped or _was_ended(run)
                _say(show, f"[{number}/{len(todo)}] {run.name}: {_how(run)}")
        except KeyboardInterrupt:
            stopped = True
        finally:
            for future in started:
                future.cancel()
    if stopped:
        _stop()


def _run_in_turns(todo: Sequence[Job], done: Mapping[str, RecordedRun], results: Path, show: bool) -> None:
    """Runs `todo` in its order by processes that start once; failures are said, an interrupt ends the study."""
    from harness.turns import take_turns

    if not todo:
        return
    _clear(todo, done)
    groups = _groups(todo, by_repeat=False)
    _say(show, f"{words.plural(len(todo), 'run')} by {words.plural(len(groups), 'start')}, taking turns")
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

    try:
        take_turns(todo, groups, results, on_turn=on_turn, on_end=on_end)
    except KeyboardInterrupt:
        stopped = True
    if stopped:
        _stop()


def _clear(jobs: Sequence[Job], done: Mapping[str, RecordedRun]) -> None:
    """Removes the old records of `jobs`: interrupted, or failed and asked for again."""
    for job in jobs:
        if (old := done.get(job.run)) is not None:
            shutil.rmtree(old.folder)


def _how(run: RecordedRun) -> str:
    return "ok" if run.ok else f"failed: {run.reason} (see {run.folder / records.LOG})"


def _stop() -> NoReturn:
    """Ends an interrupted study."""
    _say(True, "interrupted: the same command goes on where it stopped")
    raise click.exceptions.Exit(INTERRUPTED)


def _groups(jobs: Sequence[Job], *, by_repeat: bool = True) -> list[list[Job]]:
    """The jobs that can use the same processes, repeat by repeat or over all repeats, in the order of their first."""
    from harness.launch import process_key

    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.repeat if by_repeat else 0, *process_key(job)), []).append(job)
    return list(groups.values())


def plan_text(study: Study, todo: int, seconds: float | None, source: str) -> str:
    """What will be run and how long it takes, in one line."""
    engines = list(dict.fromkeys(run_name(job).split(f"-w{job.world_size}-")[0] for job in study.jobs))
    workers = sorted({job.world_size for job in study.jobs})
    repeats = 1 + max(job.repeat for job in study.jobs)
    text = (
        f"study {study.name}: {words.plural(len(study.jobs), 'run')} ({words.joined(engines)} x "
        f"{words.joined([str(count) for count in workers])} workers x {words.plural(repeats, 'repeat')})"
    )
    if todo < len(study.jobs):
        text += f", {len(study.jobs) - todo} done"
    if not todo:
        return text
    if seconds is None:
        return f"{text}; time unknown ({source}), estimated after the first run"
    return f"{text}; about {words.duration(seconds)} to go ({source})"


def _due(run: RecordedRun | None, retry_failed: bool) -> bool:
    return run is None or (not run.ok and (interrupted(run) or retry_failed))


def _left(seconds: float | None) -> str:
    return f", about {words.duration(seconds)} left for the study" if seconds else ""


def _write_study(folder: Path, study: Study) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        records.write_json(folder / STUDY, study.to_dict())
    except OSError as error:
        raise JobError(f"{folder}: cannot write results there ({error.strerror}): use --results FOLDER") from None


def _say(show: bool, text: str) -> None:
    if show:
        click.echo(text, err=True)


def _list(text: str | None, kind: type = str) -> list[Any] | None:
    """``a,b`` as ["a", "b"]; None for None."""
    if text is None:
        return None
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise JobError(f"'{text}': write numbers with commas between them, as 1,2,4") from None


def study_from_options(options: Mapping[str, Any]) -> Study:
    """The study of the command's options; --study names a TOML file or a folder in results/."""
    options = dict(options)
    given = {name: options.pop(name) for name in ("backends", "workers", "repeats", "seeds")}
    name = options.pop("study") or "compare"
    for flag, remedy in (("backend", "--backends"), ("slots", "--workers"), ("run", "--study")):
        if options.get(flag) is not None:
            raise JobError(f"--{flag.replace('run', 'run-name')} belongs to `harness run`: use {remedy} here")
    if options.pop("zero_stage", None) is not None or any(
        text.startswith("engine.") for text in options.get("settings") or ()
    ):
        raise JobError("write an engine's settings behind its name: --backends deepspeed:zero_stage=1,horovod")
    job = job_values(options)
    if name.endswith(".json"):
        if job or any(value is not None for value in given.values()):
            raise JobError("a recorded study is done again as it was: leave the other options out")
        return Study.from_record(Path(name))
    if name.endswith(".toml"):
        return Study.from_toml(
            Path(name),
            backends=_list(given["backends"]),
            workers=_list(given["workers"], int),
            repeats=given["repeats"],
            seeds=_list(given["seeds"], int),
            job=job,
        )
    return Study.from_matrix(
        name=name,
        backends=_list(given["backends"]) or ["deepspeed", "horovod"],
        workers=_list(given["workers"], int) or [1, 2],
        repeats=given["repeats"] or 3,
        seeds=_list(given["seeds"], int) or (),
        job=job,
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--backends", metavar="LIST", help="Engines, with their settings: deepspeed:zero_stage=1,horovod.")
@click.option("--workers", metavar="LIST", help="World sizes: 1,2,4 (default 1,2).")
@click.option("--repeats", type=click.IntRange(min=1), help="Interleaved repeats of every cell (default 3).")
@click.option("--seeds", metavar="LIST", help="Seeds of the repeats (default: --seed, --seed + 1, ...).")
@job_options
@click.option("--results", type=click.Path(), help="Results folder (default: the repository's results/).")
@click.option("--retry-failed", is_flag=True, help="Run failed cells again; their records are replaced.")
@click.option("--share-processes", is_flag=True, help="Runs of one engine and worker count start once a repeat.")
@click.option(
    "--take-turns",
    is_flag=True,
    help="They start once a study, all at the same time, and wait for their turns: fast, where memory holds them all.",
)
@click.option(
    "--concurrent",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="N runs at a time: for quality on a machine with room; their times are never shown.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be run and how long it takes; start nothing.")
def compare(
    results: str | None,
    retry_failed: bool,
    share_processes: bool,
    take_turns: bool,
    concurrent: int,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run engines x workers x repeats, interleaved, and report them side by side.

    --study takes a name, a TOML file that declares the whole matrix, or the study.json of a study that is to be done
    again (with another --results). Finished runs are not repeated: after an
    interrupt the same command goes on where it stopped.
    """
    if sum((share_processes, take_turns, concurrent > 1)) > 1:
        raise JobError("--share-processes, --take-turns and --concurrent exclude each other: choose one")
    study = study_from_options(options)
    root = results_root(results)
    if dry_run:
        done = find_finished(root / study.name, study.jobs)
        todo = [job for job in study.jobs if _due(done.get(job.run), retry_failed)]
        told = estimate_study(study, todo, root, share=share_processes, turns=take_turns)
        click.echo(plan_text(study, len(todo), *told))
        for job in study.jobs:
            click.echo(f"  {'todo' if job in todo else 'done'}  {job.run}")
        return
    folder = run_study(
        study, root, retry_failed=retry_failed, share=share_processes, turns=take_turns, concurrent=concurrent
    )
    sys.exit(finish(folder, root))


def finish(folder: Path, results: Path) -> int:
    """Writes comparison.csv, plots, report.html and the index, prints the table and the verdict. Exit code 0, or 1
    where a run of the study failed."""
    from rich.console import Console

    from harness.compare import summarize_study
    from harness.findings import findings
    from harness.index import write_index
    from harness.plots import write_plots
    from harness.report import write_report
    from harness.verdict import verdict

    comparison = summarize_study(folder)
    found = findings(comparison)
    comparison.write_csv(folder / "comparison.csv")
    write_plots(comparison, folder)
    page = write_report(comparison, folder / "report.html")
    write_index(results)
    console = Console()
    console.print(comparison.table())
    for sentence in verdict(comparison, found):
        console.print(sentence, markup=False, highlight=False)
    for finding in found:
        console.print(f"{finding.level}: {finding.text}", markup=False, highlight=False)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    return 1 if (comparison.frame["group"] == -1).any() else 0
