"""Every name from the command line or a file that becomes a folder: refused before anything is started, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.job.declaration import Job, JobError
from harness.records.record_files import SCHEMA_VERSION, runs_of
from harness.records.run_folder import check_writable
from harness.study.runner import _clear, find_finished
from harness.study.study_file import Study
from mpi.nodes import state
from tests.harness.commands.test_bad_input import refused
from tests.harness.made_runs import write_run

TINY = ("--preset", "tiny")
# the words of a command that end in the flag whose value becomes a folder
COMMANDS = {
    "run --study": ("run", *TINY, "--study"),
    "run --run-name": ("run", *TINY, "--run-name"),
    "run --dry-run": ("run", "--dry-run", *TINY, "--run-name"),
    "run --set study": ("run", *TINY, "--set"),
    "compare": ("compare", *TINY, "--study"),
    "fit": ("experiment", "max-model", "--study"),
    "parity": ("experiment", "parity", "--study"),
    "wire": ("experiment", "wire", "--study"),
    "overhead": ("experiment", "overhead", "--study"),
    "duel": ("experiment", "duel", "--study"),
    "predict": ("experiment", "predict", "--study"),
    "scaling": ("experiment", "scaling", "--study"),
    "collectives": ("experiment", "collectives", "--study"),
    "tune": ("tune", *TINY, "--study"),
}


@pytest.mark.parametrize("name", ["../x", "/x/y", "a/b", ".."])
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_name_that_leaves_its_folder(
    words: tuple[str, ...], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = f"study={name}" if words[-1] == "--set" else name
    said = refused(capsys, *words, value, "--results", str(tmp_path / "results"))
    assert f"name '{name}'" in said
    assert "use letters" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", list(COMMANDS.values())[5:], ids=list(COMMANDS)[5:])
def test_a_results_folder_that_is_a_file(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").write_text("mine")
    said = refused(capsys, *words, "s", "--results", str(tmp_path / "results"))
    assert f"{tmp_path}/results: not a folder" in said
    assert "--results FOLDER" in said
    assert (tmp_path / "results").read_text() == "mine"


def test_quality_s_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "quality.json").write_text("{}")
    words = (
        "model",
        "quality",
        str(tmp_path / "quality.json"),
        "--results",
        str(tmp_path / "results"),
        "--study",
        "../../x",
    )
    assert "name '../../x'" in refused(capsys, *words)


@pytest.mark.parametrize("command", [("down", "--name"), ("rate", "1gbit", "--name"), ("up", "2", "--name")])
@pytest.mark.parametrize("name", ["", "/", "..", "../precious"])
def test_nodes_take_no_path(
    command: tuple[str, ...],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("precious", "sets/other"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(state, "STATE", tmp_path / "sets")
    assert f"{name!r} cannot name a node set" in refused(capsys, "cluster", "nodes", *command, name)
    assert (tmp_path / "precious").is_dir()
    assert (tmp_path / "sets" / "other").is_dir()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--scalings", "weak,../../x"), "unknown scaling '../../x'"),
        (("--rates", "1gbit,../x"), "'../x' is not a link rate"),
        (("--nodes", "1,two"), "--nodes '1,two'"),
        (("--width", "0"), "--width '0'"),
        (("--backends", "horovod,mpi"), "engine 'mpi': virtual nodes are measured with"),
        (("--steps", "2"), "--steps above 4"),
    ],
)
def test_scaling_is_refused_before_nodes_are_made(
    words: tuple[str, str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, "experiment", "scaling", *words, "--results", str(tmp_path / "results"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"run": "../../precious"}, {"study": "../precious"}])
def test_a_recorded_study_that_names_paths(tmp_path: Path, change: dict[str, object]) -> None:
    job = Job(preset="tiny", study="s", run="a").to_dict() | change
    file = tmp_path / "study.json"
    file.write_text(json.dumps({"schema": SCHEMA_VERSION, "name": "s", "jobs": [job]}))
    with pytest.raises(JobError, match="use letters"):
        Study.from_record(file)


def test_an_interrupted_run_that_is_a_link_is_not_removed(tmp_path: Path) -> None:
    job = Job(preset="tiny", run="a")
    write_run(tmp_path / "elsewhere", job, step_s=0.1)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a").symlink_to(next((tmp_path / "elsewhere").iterdir()))
    done = find_finished(tmp_path / "s", [job])
    assert list(done) == ["a"]
    with pytest.raises(Exception, match="a: a link"):
        _clear([job], done)
    assert runs_of(tmp_path / "elsewhere")


def test_where_results_can_be_written(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("file", "file/deeper", "nowhere", "nowhere/x"):
        with pytest.raises(JobError, match="not a folder"):
            check_writable(tmp_path / name)
