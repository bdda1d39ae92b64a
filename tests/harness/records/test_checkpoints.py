"""Checkpoints on a disk that two nodes share, or do not; and the record of a run that is cut and goes on."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from harness.job.declaration import Job, JobError
from harness.launch.run import _Watcher
from harness.records.checkpoints import KEEP, check_seal, cut_steps, latest, save_checkpoint
from harness.records.record_files import STEPS, append_jsonl
from harness.records.tail import Tail


class Node:
    """Rank `rank` of two, each the first of its node, whose collectives are those of two threads."""

    name = "planted"
    world_size = 2
    local_rank = 0

    def __init__(self, rank: int, together: threading.Barrier, said: list[Any]) -> None:
        self.rank, self._together, self._said = rank, together, said

    def broadcast(self, value: Any) -> Any:
        if self.rank == 0:
            self._said[:] = [value]
        self.barrier()
        (value,) = self._said
        self.barrier()
        return value

    def barrier(self) -> None:
        self._together.wait(20)

    def save(self, folder: Path) -> None:
        (folder / f"rank-{self.rank}.pt").write_bytes(bytes(100 + self.rank))


def save_on_two_nodes(folder: Path, steps: list[int]) -> None:
    together, said, failed = threading.Barrier(2), [], []

    def work(rank: int) -> None:
        try:
            for step in steps:
                save_checkpoint(Node(rank, together, said), folder if rank == 0 else None, Job(), step)  # type: ignore[arg-type]
                found = latest(folder)
                assert found is not None
                assert found.step == step
                together.wait(20)
        except BaseException as error:
            failed.append(error)
            together.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed, failed


def test_two_nodes_on_one_disk_seal_a_checkpoint_once(tmp_path: Path) -> None:
    save_on_two_nodes(tmp_path, list(range(10, 410, 10)))
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-000390", "step-000400"]
    assert len(kept) == KEEP
    for path in kept:
        assert sorted(file.name for file in path.iterdir()) == ["rank-0.pt", "rank-1.pt", "seal.json"]


def test_a_step_that_is_saved_again_replaces_what_was_there(tmp_path: Path) -> None:
    save_on_two_nodes(tmp_path, [10])
    old = tmp_path / "checkpoints" / "step-000010"
    (old / "rank-1.pt").write_bytes(b"short")
    with pytest.raises(JobError, match="truncated"):
        check_seal(old)
    save_on_two_nodes(tmp_path, [10])
    assert check_seal(old) == 10


def rows(begin: int, end: int, width: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 1.0, "step_s": 0.1, "pad": "x" * width} for step in range(begin, end)]


def test_what_is_read_while_it_grows_has_each_step_once_though_the_file_was_cut(tmp_path: Path) -> None:
    path = tmp_path / STEPS
    for lost, width in ((40, 3), (47, 4), (0, 9)):
        path.unlink(missing_ok=True)
        append_jsonl(path, rows(0, 50, 2))
        tail = Tail(path)
        assert [row["step"] for row in tail.read()] == list(range(50))
        cut_steps(tmp_path, lost)
        assert tail.read() == []
        append_jsonl(path, rows(lost, 60, width))
        assert [row["step"] for row in tail.read()] == list(range(50, 60)), lost
        append_jsonl(path, rows(60, 61, 1))
        assert [row["step"] for row in tail.read()] == [60]


def test_the_supervisor_goes_on_watching_a_job_whose_record_was_cut(tmp_path: Path) -> None:
    seen: list[int] = []
    watcher = _Watcher(Job(steps=60), tmp_path, False, lambda new: seen.extend(row["step"] for row in new))
    append_jsonl(tmp_path / STEPS, rows(0, 50, 2))
    watcher.look()
    cut_steps(tmp_path, 40)
    append_jsonl(tmp_path / STEPS, rows(40, 60, 7))
    watcher.look()
    assert seen == list(range(60))
    shutil.rmtree(tmp_path)
    watcher.look()
