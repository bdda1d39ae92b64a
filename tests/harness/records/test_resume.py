"""What a resumed run goes on from: the newest whole checkpoint, of the same training; never a damaged record."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core_model.user_job.source import file_hashes
from harness.job.declaration import Job, JobError
from harness.records.checkpoints import check_matches, check_resumable, cut_torn_lines, latest, save_checkpoint
from harness.records.record_files import JOB, RESOURCES, SPLIT, append_jsonl, read_jsonl
from harness.records.run_folder import claim_run_folder

ASKED = Job(backend="fsdp2", preset="tiny", precision="fp16", image_size=56, run="run", checkpoint_every=10)


class Alone:
    """One rank that keeps a file of some bytes."""

    name = "fsdp2"
    rank = local_rank = 0
    world_size = 1

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        """One process is always together."""

    def save(self, folder: Path) -> None:
        (folder / "state.pt").write_bytes(bytes(100))


def saved(tmp_path: Path, steps: tuple[int, ...] = (10, 20)) -> Path:
    """The folder of a run with checkpoints."""
    _, folder = claim_run_folder(ASKED, tmp_path)
    for step in steps:
        save_checkpoint(Alone(), folder, ASKED, step)  # type: ignore[arg-type]
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a file cut short": lambda at: cut(at / "state.pt"),
    "a file missing": lambda at: (at / "state.pt").unlink(),
    "the seal torn": lambda at: cut(at / "seal.json"),
    "the seal empty": lambda at: (at / "seal.json").write_bytes(b""),
    "the seal not text": lambda at: (at / "seal.json").write_bytes(b"\xff\x00"),
    "the seal a list": lambda at: (at / "seal.json").write_text("[]"),
    "the seal of something else": lambda at: (at / "seal.json").write_text('{"files": {}, "step": 20}'),
    "half a folder": lambda at: (at / "seal.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_checkpoint_is_passed_over_and_it_is_said(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    folder = saved(tmp_path)
    damage(folder / "checkpoints" / "step-000020")
    found = latest(folder)
    assert found is not None
    assert found.step == 10
    (words,) = found.passed_over
    assert "step-000020" in words
    assert "\n" not in words
    check_resumable(ASKED, folder)
    damage(folder / "checkpoints" / "step-000010")
    with pytest.raises(JobError, match=r"step-000020.*there is no whole one before it: start another run"):
        latest(folder)


def test_the_next_save_removes_what_a_life_before_left_of_later_steps(tmp_path: Path) -> None:
    folder = saved(tmp_path, (10, 20, 30))
    cut(folder / "checkpoints" / "step-000030" / "state.pt")
    save_checkpoint(Alone(), folder, ASKED, 25)  # type: ignore[arg-type]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000020", "step-000025"]


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    found = latest(saved(tmp_path, (999_999, 1_000_000)))
    assert found is not None
    assert found.step == 1_000_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", "fp32"),
        ("precision_mode", "native"),
        ("optimizer", "sgd"),
        ("schedule", "constant"),
        ("lr", 0.1),
        ("steps", 99),
        ("preset", "small"),
        ("seed", 5),
        ("accumulation", 2),
        ("global_batch", 16),
        ("model", {"dropout": 0.5}),
        ("image_size", 112),
        ("data", "elsewhere"),
        ("loss_scale", {"window": 5}),
        ("backend", "ddp"),
        ("slots", 2),
    ],
)
def test_another_job_is_refused_before_the_record_is_touched(name: str, value: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    before = (folder / JOB).read_bytes()
    with pytest.raises(JobError) as caught:
        claim_run_folder(ASKED.with_(resume=True, **{name: value}), tmp_path)
    said = str(caught.value)
    assert name in said or "written by fsdp2 on 1 workers" in said
    assert "leave --resume out" in said
    assert "\n" not in said
    assert (folder / JOB).read_bytes() == before


def test_what_decides_speed_alone_may_change(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    faster = ASKED.with_(resume=True, engine={"cpu_offload": True}, activation_checkpointing=True, log_every=3)
    assert claim_run_folder(faster, tmp_path)[1] == folder


def test_the_presets_own_size_is_judged_when_the_model_is_there(tmp_path: Path) -> None:
    folder = saved(tmp_path) / "checkpoints" / "step-000020"
    check_matches(folder, ASKED.with_(image_size=0), 1)
    with pytest.raises(JobError, match="saved with image_size 56, this job has 112"):
        check_matches(folder, ASKED.with_(image_size=112), 1)


def test_settings_of_the_engine_that_decide_the_arithmetic(tmp_path: Path) -> None:
    job = ASKED.with_(engine={"zero_stage": 2, "reduce_bucket_size": 5})
    save_checkpoint(Alone(), tmp_path, job, 10)  # type: ignore[arg-type]
    folder = tmp_path / "checkpoints" / "step-000010"
    check_matches(folder, job.with_(engine={"zero_stage": 2}), 1)
    check_matches(folder, job.with_(engine={}), 1)  # the engine knows its default, and is asked next
    with pytest.raises(JobError, match="saved with zero_stage 2, this job has 3"):
        check_matches(folder, job.with_(engine={"zero_stage": 3}), 1)


def test_a_checkpoint_of_an_older_version_says_that_it_does_not_say(tmp_path: Path) -> None:
    folder = saved(tmp_path) / "checkpoints" / "step-000020"
    seal = json.loads((folder / "seal.json").read_text())
    del seal["job"]
    (folder / "seal.json").write_text(json.dumps(seal))
    with pytest.raises(JobError, match="does not say how it was trained"):
        check_matches(folder, ASKED, 1)


def test_a_job_of_the_users_goes_on_only_with_the_files_that_it_was_begun_with(tmp_path: Path) -> None:
    """Its own file and the modules beside it, whose hashes stand in the seal; nothing is imported to find out."""
    file, beside = tmp_path / "my_job.py", tmp_path / "beside.py"
    file.write_text("import beside")
    beside.write_text("SCALE = 1")
    job = ASKED.with_(preset=f"{file}:make_job")
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (file, beside)}
    assert file_hashes(file) == {file.name: hashes[file.name]}  # `beside` is not imported in this process
    save_checkpoint(Alone(), tmp_path, job, 10, hashes)  # type: ignore[arg-type]
    save_checkpoint(Alone(), tmp_path / "old", job, 10)  # type: ignore[arg-type]
    folder = tmp_path / "checkpoints" / "step-000010"
    check_matches(folder, job, 1)
    for path in (file, beside):
        content = path.read_text()
        path.write_text(content + "  # another thought")
        with pytest.raises(JobError, match=rf"{path.name} has been changed since .*put its old content back.*resume"):
            check_matches(folder, job, 1)
        path.unlink()
        with pytest.raises(JobError, match=f"{path.name} has been changed"):
            check_matches(folder, job, 1)
        path.write_text(content)
    check_matches(folder, job, 1)
    with pytest.raises(JobError, match=r"does not say what my_job.py held"):
        check_matches(tmp_path / "old" / "checkpoints" / "step-000010", job, 1)


def test_one_data_folder_may_be_spelled_in_two_ways(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "pictures").mkdir()
    job = ASKED.with_(data=str(tmp_path / "pictures"))
    save_checkpoint(Alone(), tmp_path, job, 10)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    check_matches(tmp_path / "checkpoints" / "step-000010", job.with_(data="pictures"), 1)


def test_torn_last_lines_are_cut_before_anything_is_appended(tmp_path: Path) -> None:
    for name in (RESOURCES, SPLIT):
        append_jsonl(tmp_path / name, [{"t": 1.0}, {"t": 2.0}])
        with (tmp_path / name).open("a") as file:
            file.write('{"t": 3.')
    cut_torn_lines(tmp_path)
    for name in (RESOURCES, SPLIT):
        append_jsonl(tmp_path / name, [{"t": 4.0}])
        assert [row["t"] for row in read_jsonl(tmp_path / name)] == [1.0, 2.0, 4.0]
    shutil.rmtree(tmp_path)
    cut_torn_lines(tmp_path)
