"""Records that a kill, a full disk or an editor damaged: a torn last line is left out and noted, other damage is named
with file and line, and one bad run never ends the report of its study."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import harness
from harness.analysis.caveats import findings
from harness.analysis.comparison import summarize_study
from harness.cli import main
from harness.commands.report import report
from harness.commands.results.check import check
from harness.job.declaration import Job, JobError
from harness.publish.index import write_index
from harness.records.checkpoints import check_resumable, cut_steps, cut_torn_lines
from harness.records.record_files import (
    JOB,
    RESOURCES,
    SPLIT,
    STEPS,
    RecordError,
    append_jsonl,
    read_jsonl,
    runs_of,
    torn_end,
)
from harness.records.tail import Tail
from harness.study.runner import find_finished
from harness.study.time_estimate import estimate
from tests.harness.made_runs import write_run, write_study

NAMES = (STEPS, RESOURCES, SPLIT)
TORN_ENDS = {"half a row": b'{"step": 1, "lo', "half a character": b'{"step": "\xe2\x82', "zeros": b"\0\0\0\0\n"}


@pytest.mark.parametrize("end", TORN_ENDS.values(), ids=list(TORN_ENDS))
def test_a_torn_last_line_is_left_out_and_told(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 0}\n')
    assert torn_end(path) == 0
    path.write_bytes(b'{"step": 0}\n' + end)
    assert list(read_jsonl(path)) == [{"step": 0}]
    assert torn_end(path) == len(end)


@pytest.mark.parametrize("line", [b'{"step": 1, "lo', b"\xff\xfe", b"[1, 2]", b""], ids=repr)
def test_damage_in_the_middle_is_named_with_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(RecordError, match=rf"{path}: line 2 is not valid JSON"):
        list(read_jsonl(path))
    with pytest.raises(RecordError, match=r"steps\.jsonl: the line .* is not valid JSON"):
        Tail(path).read()


@pytest.mark.parametrize("end", TORN_ENDS.values(), ids=list(TORN_ENDS))
def test_a_torn_record_is_gone_on_with(tmp_path: Path, end: bytes) -> None:
    folder = write_run(tmp_path / "s", Job(preset="tiny"))
    before = {name: list(read_jsonl(folder / name)) for name in NAMES}
    for name in NAMES:
        with (folder / name).open("ab") as file:
            file.write(end)
    check_resumable(Job(preset="tiny"), folder)
    cut_torn_lines(folder)
    cut_steps(folder, 20)
    for name in NAMES:
        append_jsonl(folder / name, [{"step": 20}])
        kept = before[name][:20] if name == STEPS else before[name]
        assert list(read_jsonl(folder / name)) == [*kept, {"step": 20}], name


def test_a_record_that_is_damaged_inside_is_refused_before_it_is_gone_on_with(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "s", Job(preset="tiny"))
    text = (folder / RESOURCES).read_text()
    (folder / RESOURCES).write_text("{\n" + text)
    with pytest.raises(RecordError, match=r"resources\.jsonl: line 1 is"):
        check_resumable(Job(preset="tiny"), folder)


def test_a_torn_last_line_is_a_note_of_report_and_check(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", repeats=1)
    bad = runs_of(study)[0]
    with (bad / RESOURCES).open("a") as file:
        file.write('{"t": 1.0, "ra')
    found = [item for item in findings(summarize_study(study)) if item.code == "torn-record"]
    assert [item.level for item in found] == ["note"]
    assert found[0].text.startswith(f"{bad.name}/resources.jsonl: its last line was cut off")
    done = CliRunner().invoke(check, [str(study)])
    assert done.exit_code == 0, done.output
    assert f"note: s/{bad.name}/resources.jsonl: its last line was cut off" in done.output


def edited(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "seed": ("job.json: seed: 'abc' is not", lambda run: edited(run / "job.json", seed="abc")),
    "engine": ("job.json: engine: ", lambda run: edited(run / "job.json", engine=[1])),
    "torn job": ("job.json: cannot be read: ", lambda run: (run / "job.json").write_text('{"schema": 1, "ba')),
    "not UTF-8": ("job.json: cannot be read: ", lambda run: (run / "job.json").write_bytes(b'{"schema": "\xff"}')),
    "result": ("result.json: throughput: ", lambda run: edited(run / "result.json", throughput="fast")),
    "torn result": ("result.json: cannot be read: ", lambda run: (run / "result.json").write_text("{")),
    "environment": ("environment.json: cannot be read: ", lambda run: (run / "environment.json").write_text("[]")),
    "profile": ("profile.json: cannot be read: not valid JSON", lambda run: (run / "profile.json").write_text("{")),
    "row": ("steps.jsonl: line 2: step_s: ", lambda run: spoil_second_row(run, torn=False)),
    "torn row": ("steps.jsonl: cannot be read: ", lambda run: spoil_second_row(run, torn=True)),
}


def spoil_second_row(run: Path, *, torn: bool) -> None:
    """Of steps.jsonl: cut off in the middle, or a number of it made text."""
    path = run / STEPS
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:20] if torn else json.dumps({**json.loads(lines[1]), "step_s": "slow"})
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("told", "damage"), DAMAGES.values(), ids=list(DAMAGES))
def test_one_bad_run_is_named_and_left_out(
    tmp_path: Path, told: str, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path / "results" / "s", repeats=1)
    bad, *_ = runs = runs_of(study)
    damage(bad)
    comparison = summarize_study(study)
    assert len(comparison.runs) == len(runs) - 1
    assert [text.startswith(f"s/{bad.name} is left out: {told}") for text in comparison.left_out] == [True], told
    done = CliRunner().invoke(report, [str(study), "--format", "md"])
    assert done.exit_code == 0, done.exception
    assert "is left out" in done.output
    assert bad.name in write_index(study.parent).read_text()
    done = CliRunner().invoke(check, [str(study)])
    assert done.exit_code == 1, done.exception
    assert sum(f"s/{bad.name}/{told.split(':')[0]}: " in line for line in done.output.splitlines()) == 1
    assert len(harness.load(study)) == len(runs) - 1
    with pytest.warns(UserWarning, match="is left out"):
        assert set(harness.load(study, "steps")["run"]) == {run.name for run in runs[1:]}
    with pytest.raises(SystemExit) as ended:
        main(["results", "diff", str(bad), str(runs[1])])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    estimate([Job(preset="tiny")], study.parent)


def test_a_study_of_bad_runs_alone_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "s", Job(preset="tiny"))
    edited(folder / JOB, seed="abc")
    for command in (["report"], ["results", "check"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, str(tmp_path / "s")])
        assert ended.value.code == (2 if command == ["report"] else 1)
        told = "".join(capsys.readouterr())
        assert "job.json: seed: 'abc' is not" in told
        assert "Traceback" not in told


def test_a_torn_study_file_is_a_problem_of_check(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", repeats=1)
    (study / "study.json").write_text("{")
    done = CliRunner().invoke(check, [str(study)])
    assert done.exit_code == 1
    assert "s/study.json: " in done.output


def test_a_study_goes_on_beside_a_bad_run_of_another_job(tmp_path: Path) -> None:
    job = Job(preset="tiny", study="s", run="mine")
    other = write_run(tmp_path / "s", job.with_(run="other", seed=1))
    (other / JOB).write_text("{")
    assert find_finished(tmp_path / "s", [job]) == {}
    with pytest.raises(JobError, match=r"other: job\.json: cannot be read: not .*: remove that folder"):
        find_finished(tmp_path / "s", [job.with_(run="other")])
