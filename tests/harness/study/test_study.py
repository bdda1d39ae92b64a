"""A study: its matrix, its order, what is not done twice, what is refused before anything starts."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import click
import psutil
import pytest
from click.testing import CliRunner

from harness.cli import main
from harness.commands.compare import compare, study_from_options
from harness.common.paths import PROJECT
from harness.job.declaration import Job, JobError
from harness.launch import run as launch
from harness.protocol.turns import Stop
from harness.records.record_files import JOB, RESULT, runs_of, write_json
from harness.study import runner as study_run
from harness.study.runner import _one_at_once, find_finished, run_study
from harness.study.study_file import Study, parse_backend
from harness.study.time_estimate import estimate, groups_of, plan_text
from tests.harness.made_runs import write_run


def matrix(**changes) -> Study:
    values = {"name": "s", "backends": ["deepspeed:zero_stage=1", "horovod"], "workers": [1, 2], "repeats": 3}
    return Study.from_matrix(**{**values, "job": {"preset": "tiny"}, **changes})


def test_every_combination_once_interleaved_and_turning() -> None:
    jobs = matrix().jobs
    assert len(jobs) == len({job.run for job in jobs}) == 12
    order = [(job.repeat, job.world_size, job.backend) for job in jobs]
    assert order[:4] == [(0, 1, "deepspeed"), (0, 1, "horovod"), (0, 2, "deepspeed"), (0, 2, "horovod")]
    assert order[4:6] == [(1, 1, "horovod"), (1, 1, "deepspeed")]  # the other one begins
    assert order[8:10] == [(2, 1, "deepspeed"), (2, 1, "horovod")]


def test_each_repeat_has_its_seed_shared_by_the_engines() -> None:
    seeds = {(job.repeat, job.seed) for job in matrix(job={"preset": "tiny", "seed": 5}).jobs}
    assert seeds == {(0, 5), (1, 6), (2, 7)}
    assert {(job.repeat, job.seed) for job in matrix(seeds=[3]).jobs} == {(0, 3), (1, 3), (2, 3)}


def test_weak_scaling_grows_the_batch_with_the_workers() -> None:
    jobs = matrix(job={"scaling": "weak", "global_batch": 4}).jobs
    assert {(job.world_size, job.global_batch, job.micro_batch) for job in jobs} == {(1, 4, 4), (2, 8, 4)}


def test_matrix_fields_are_crossed_and_named() -> None:
    jobs = matrix(matrix={"precision": ["fp32", "bf16"], "loader_workers": [0, 2]}, repeats=1).jobs
    assert len(jobs) == len({job.run for job in jobs}) == 16
    assert any("loader_workers-2" in job.run and "bf16" in job.run for job in jobs)


def test_single_runs_with_one_worker_only() -> None:
    jobs = matrix(backends=["single", "ddp"], repeats=1).jobs
    assert sorted((job.backend, job.world_size) for job in jobs) == [("ddp", 1), ("ddp", 2), ("single", 1)]
    with pytest.raises(JobError, match="one worker only"):
        matrix(backends=["single"], workers=[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backends": []}, "at least one engine"),
        ({"backends": ["horovod", "horovod"]}, "listed twice"),
        ({"backends": ["deepspeed:zero_stage"]}, "KEY=VALUE"),
        ({"job": {"slots": 2}}, "decided by the study"),
        ({"job": {"preset": "tiny", "global_batch": 7}}, "cannot be split"),
        ({"job": {"nodes": 2}}, "spread evenly over 2 nodes"),
        ({"matrix": {"nonsense": [1]}}, "no job field"),
        ({"matrix": {"precision": "bf16"}}, "list of values"),
        ({"name": "../up"}, "study name"),
    ],
)
def test_what_cannot_work_is_one_line(changes: dict, message: str) -> None:
    with pytest.raises(JobError, match=message) as caught:
        matrix(**changes)
    assert "\n" not in str(caught.value)


def test_backend_settings_are_parsed() -> None:
    assert parse_backend("deepspeed:zero_stage=2+overlap_comm=true") == {
        "backend": "deepspeed",
        "engine": {"zero_stage": 2, "overlap_comm": True},
    }


TOML = """
title = "Two engines"
backends = ["deepspeed:zero_stage=1", "horovod"]
workers = [1, 2]
repeats = 2
[job]
preset = "tiny"
steps = 40
"""


def test_toml_declares_a_study_and_options_replace_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "two-engines.toml"
    path.write_text(TOML)
    made = Study.from_toml(path)
    assert made.name == "two-engines"
    assert len(made.jobs) == 8
    assert {job.steps for job in made.jobs} == {40}
    shorter = Study.from_toml(path, workers=[2], repeats=None, job={"steps": 12})
    assert {(job.world_size, job.steps) for job in shorter.jobs} == {(2, 12)}
    assert len(shorter.jobs) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1", "unknown key 'nonsense'"),
        ("= 1", "not a readable TOML"),
        ("[job]\nx = 1\n", "at least one engine"),
        ('backends = ["ddp"]\n[job]\nx = 1\n', "unknown job field 'x'"),
    ],
)
def test_bad_toml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(JobError, match=message):
        Study.from_toml(path)
    with pytest.raises(JobError, match="no such study file"):
        Study.from_toml(tmp_path / "none.toml")


def test_options_of_the_command_that_belong_elsewhere_are_refused() -> None:
    for arguments, message in (
        (["--set", "engine.zero_stage=1"], "deepspeed:zero_stage=1"),
        (["--workers", "one"], "write whole numbers"),
        (["--study", "x.toml"], "harness compare x.toml"),
        (["zero-stage"], "did you mean 'zero-stages'?"),
    ):
        done = CliRunner().invoke(compare, ["--dry-run", *arguments])
        assert isinstance(done.exception, JobError), arguments
        assert message in str(done.exception)


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("--backend", "--backends"),
        ("--slots", "--workers"),
        ("--zero-stage", "deepspeed:zero_stage="),
        ("--run-name", "--study"),
    ],
)
def test_options_of_a_single_run_are_none_of_a_study(
    option: str, instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", option, "2"])
    assert ended.value.code == 2
    assert f"No such option: {option}: " in (said := capsys.readouterr().err)
    assert instead in said


def test_a_shipped_study_is_named() -> None:
    named = study_from_options({"declared": "zero-stages", "study": "mine", "repeats": 1})
    from_file = Study.from_toml(PROJECT / "harness" / "studies" / "zero-stages.toml", name="mine", repeats=1)
    assert named == from_file


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of launching, writes the run's folder; names of the runs in their order. (tests/parallel/test_compare
    does it with real workers.)"""
    started: list[str] = []

    def run_job(job: Job, results: Path, **_: object) -> Path:
        started.append(job.run)
        return write_run(results / job.study, job, step_s=0.5 if job.backend == "horovod" else 0.6)

    monkeypatch.setattr(launch, "run_job", run_job)
    monkeypatch.setattr(launch, "preflight", lambda job: job)
    return started


def test_finished_runs_are_not_repeated(tmp_path: Path, runner: list[str]) -> None:
    made = matrix(repeats=1)
    run_study(made, tmp_path, show=False)
    assert len(runner) == 4
    run_study(made, tmp_path, show=False)
    assert len(runner) == 4
    longer = matrix(repeats=2)
    run_study(longer, tmp_path, show=False)
    assert len(runner) == 8
    assert set(runner) == {job.run for job in longer.jobs}


def test_interrupted_run_is_done_again_and_a_failed_one_is_kept(tmp_path: Path, runner: list[str]) -> None:
    made = matrix(repeats=1)
    folder = run_study(made, tmp_path, show=False)
    for job, code in ((made.jobs[0], 129), (made.jobs[1], 1)):
        path = folder / job.run / RESULT
        path.write_text(
            json.dumps({"schema": 1, "status": "failed", "reason": "x", "exit_code": code, "world_size": 1})
        )
    runner.clear()
    run_study(made, tmp_path, show=False)
    assert runner == [made.jobs[0].run]
    runner.clear()
    (folder / made.jobs[2].run / RESULT).unlink()  # claimed, and killed before it began
    run_study(made, tmp_path, show=False)
    assert runner == [made.jobs[2].run]
    runner.clear()
    run_study(made, tmp_path, show=False, retry_failed=True)
    assert runner == [made.jobs[1].run]
    assert all(run.ok for run in find_finished(folder, made.jobs).values())


def test_interrupt_ends_the_study_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(job: Job, results: Path, **_: object) -> Path:
        folder = write_run(results / job.study, job, fail="interrupted")
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "exit_code": 130}))
        return folder

    monkeypatch.setattr(launch, "run_job", run_job)
    monkeypatch.setattr(launch, "preflight", lambda job: job)
    with pytest.raises(SystemExit) as caught:
        run_study(matrix(), tmp_path, show=False)
    assert caught.value.code == 130
    assert len(runs_of(tmp_path / "s")) == 1


def test_long_names_keep_their_end_and_stay_apart() -> None:
    settings = "+".join(f"{name}=1000000" for name in ("reduce_bucket_size", "allgather_bucket_size"))
    text = f"deepspeed:zero_stage=3+offload_optimizer=true+offload_param=true+{settings}+overlap_comm=false"
    first, second = (job.run for job in matrix(backends=[text], workers=[2], repeats=2).jobs)
    assert len(first) == len(second) == 120
    assert first.endswith("-r0")
    assert second.endswith("-r1")
    other = matrix(backends=[text.replace("bucket_size=1000000", "bucket_size=2000000")], workers=[2], repeats=1)
    assert other.jobs[0].run != first


def one_that_waits(job: Job, results: Path, stop: Stop) -> Path | None:
    """`study_run._one_at_once` in a process of the pool, with a launch that takes long and ends when it is told to."""
    launch.run_job = waiting_job  # type: ignore[assignment]
    return _one_at_once(job, results, stop)


def waiting_job(job: Job, results: Path, *, stop: Stop) -> Path:
    folder = results / job.study / job.run
    folder.mkdir(parents=True)
    limit = time.monotonic() + 60
    while not stop.is_given:
        assert time.monotonic() < limit, "nobody was told to stop"
        time.sleep(0.02)
    write_json(folder / JOB, job.to_dict())
    write_json(folder / RESULT, {"status": "failed", "reason": "interrupted", "exit_code": 130})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_several_at_a_time_are_all_ended_and_none_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, number: int
) -> None:
    monkeypatch.setattr(study_run, "_one_at_once", one_that_waits)
    monkeypatch.setattr(launch, "preflight", lambda job: job)
    # Whatever pytest was started with: in the background of a script SIGINT is ignored, under nohup SIGHUP.
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)
    request.addfinalizer(lambda: signal.signal(number, before))
    folder = tmp_path / "s"

    ended = interrupted_when(lambda: len(list(folder.glob("*/"))) >= 2, [os.getpid()], number)
    with ended, pytest.raises(SystemExit) as caught:
        run_study(matrix(repeats=2), tmp_path, show=False, concurrent=2)
    assert caught.value.code == 130
    assert len(list(folder.glob("*/"))) == 2, "no run begins after the interrupt"


@pytest.mark.slow
def test_an_interrupt_of_the_whole_group_while_supervisors_start_ends_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """What a Ctrl-C in a terminal does: the supervisors get it too, before they are able to ignore it."""
    monkeypatch.setattr(study_run, "_one_at_once", one_that_waits)
    monkeypatch.setattr(launch, "preflight", lambda job: job)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    known = {child.pid for child in psutil.Process().children()}
    group = [os.getpid()]

    def two_start() -> bool:
        new = [child for child in psutil.Process().children() if child.pid not in known]
        group[1:] = [child.pid for child in new if any("spawn_main" in word for word in command_line(child))]
        return len(group) > 2

    with interrupted_when(two_start, group, signal.SIGINT), pytest.raises(SystemExit) as caught:
        run_study(matrix(repeats=2), tmp_path, show=False, concurrent=2)
    assert caught.value.code == 130


def command_line(process: psutil.Process) -> list[str]:
    """Empty where it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def interrupted_when(condition: Callable[[], bool], group: list[int], number: int) -> Iterator[None]:
    """Sends `number` to the processes `group` as soon as `condition` holds; never after the block."""
    over = threading.Event()

    def interrupt() -> None:
        while not condition():
            if over.wait(0.02):
                return
        for pid in group:
            with suppress(ProcessLookupError):  # already ended: the interrupt reached it some other way
                os.kill(pid, number)
            time.sleep(0.05)  # this process first: it has given up the runs that wait when the others learn of it

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_other_settings_under_the_same_name_are_refused(tmp_path: Path, runner: list[str]) -> None:
    run_study(matrix(repeats=1), tmp_path, show=False)
    with pytest.raises(JobError, match=r"holds a run with other settings \(lr\): choose another --study"):
        run_study(matrix(repeats=1, job={"preset": "tiny", "lr": 0.5}), tmp_path, show=False)


def test_refused_study_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def preflight(job: Job) -> Job:
        raise JobError("no such engine")

    monkeypatch.setattr(launch, "preflight", preflight)
    with pytest.raises(JobError, match="no such engine"):
        run_study(matrix(), tmp_path, show=False)
    assert list(tmp_path.iterdir()) == []


def test_estimate_is_from_like_runs(tmp_path: Path, runner: list[str]) -> None:
    assert estimate(matrix().jobs, tmp_path)[0] is None
    folder = run_study(matrix(repeats=1), tmp_path, show=False)
    walls = [json.loads((path / "result.json").read_text())["wall_s"] for path in runs_of(folder)]
    seconds, source = estimate(matrix(repeats=1).jobs, tmp_path)
    assert seconds == pytest.approx(sum(walls), rel=0.05)
    assert "4 earlier runs" in source
    double, _ = estimate(matrix(repeats=1, job={"preset": "tiny", "steps": 2 * Job().steps}).jobs, tmp_path)
    assert seconds < double < 2 * seconds
    assert estimate(matrix(job={"preset": "small"}).jobs, tmp_path)[0] is None


def test_command_reports_and_exits_by_what_failed(tmp_path: Path, runner: list[str]) -> None:
    arguments = ["--study", "s", "--preset", "tiny", "--budget", "0", "--repeats", "2", "--results", str(tmp_path)]
    done = CliRunner().invoke(compare, arguments)
    assert done.exit_code == 0, done.output
    for name in ("comparison.csv", "report.html", "scaling.png", "scaling.svg", "study.json"):
        assert (tmp_path / "s" / name).stat().st_size > 0, name
    assert [path.name for path in tmp_path.iterdir()] == ["s"], "nothing beside the study: README.md may be tracked"
    assert re.search(r"Horovod is (19|20)\.\d % faster", done.output)
    failed = next((tmp_path / "s").glob("horovod-w2-*")) / "result.json"
    failed.write_text(json.dumps({"schema": 1, "status": "failed", "reason": "gone", "exit_code": 1, "world_size": 2}))
    done = CliRunner().invoke(compare, arguments)
    assert done.exit_code == 1
    assert "failed: gone" in done.output


def test_dry_run_starts_nothing(tmp_path: Path, runner: list[str]) -> None:
    done = CliRunner().invoke(compare, ["--dry-run", "--results", str(tmp_path), "--preset", "tiny"])
    assert done.exit_code == 0
    assert "12 runs" in done.output
    assert done.output.count("todo") == 12
    assert runner == []


def test_recorded_study_can_be_done_again_elsewhere(tmp_path: Path, runner: list[str]) -> None:
    run_study(matrix(repeats=1), tmp_path / "one", show=False)
    again = study_from_options(
        {
            "declared": str(tmp_path / "one" / "s" / "study.json"),
            "study": None,
            "backends": None,
            "workers": None,
            "repeats": None,
            "seeds": None,
        }
    )
    assert again.jobs == matrix(repeats=1).jobs
    run_study(again, tmp_path / "two", show=False)
    assert len(runner) == 8


def test_plan_names_what_is_left() -> None:
    text = plan_text(matrix(), 5, 125.0, "from 3 earlier runs")
    assert "12 runs (deepspeed-z1 and horovod x 1 and 2 workers x 3 repeats), 7 done; about 2.1 min to go" in text


@pytest.mark.parametrize("path", sorted((PROJECT / "harness" / "studies").glob("*.toml")), ids=lambda p: p.stem)
def test_studies_of_the_project_are_valid(path: Path) -> None:
    made = Study.from_toml(path)
    assert made.name == path.stem
    assert len(made.jobs) >= 4
    assert len({(job.backend, str(job.engine)) for job in made.jobs}) >= 2


def test_a_studys_own_estimate_counts_until_a_run_is_recorded(tmp_path: Path) -> None:
    from harness.study.time_estimate import estimate_study

    file = tmp_path / "new.toml"
    text = 'backends = ["ddp"]\nworkers = [1, 2]\nrepeats = 2\n[job]\npreset = "tiny"\n'
    text += '[matrix]\nscaling = ["weak", "strong"]\n'
    file.write_text(text + "[estimate]\nstart_s = 20\nrun_s = 5\n")
    study = Study.from_toml(file)
    apart, shared = (estimate_study(study, study.jobs, tmp_path, turns=turns) for turns in (False, True))
    assert apart[0] == 8 * 20 + 8 * 5
    assert shared[0] == 2 * 20 + 8 * 5  # one start for each number of workers
    assert "as the study says" in shared[1]
    file.write_text(text + "[estimate]\nstart = 20\n")
    with pytest.raises(JobError, match="start_s and run_s"):
        Study.from_toml(file)


def test_an_interrupted_commands_exit_status_reaches_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:

    from harness import cli

    @click.command()
    def stop() -> None:
        raise click.exceptions.Exit(130)

    monkeypatch.setattr(cli, "cli", stop)
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 130


def test_only_jobs_that_can_use_the_same_processes_share_them() -> None:
    zero, horovod = ["deepspeed:zero_stage=1", "deepspeed:zero_stage=2"], ["horovod", "horovod:cycle_time_ms=2"]
    backends = ["ddp", "fsdp2", *zero, *horovod]
    jobs = matrix(backends=backends, workers=[2], repeats=1).jobs
    together = sorted([job.backend for job in group] for group in groups_of(jobs))
    assert together == [["ddp", "fsdp2"], ["deepspeed", "deepspeed"], ["horovod"], ["horovod"]]
    assert len(groups_of(matrix(backends=["ddp", "fsdp2"], workers=[1, 2], repeats=2).jobs)) == 2
    through_mpi = [replace(job, launcher="mpirun") if job.backend == "fsdp2" else job for job in jobs]
    assert len(groups_of(through_mpi)) == 5
    with pytest.raises(JobError, match="run them apart"):
        launch.run_jobs([jobs[0], jobs[-1]], Path("nowhere"))
