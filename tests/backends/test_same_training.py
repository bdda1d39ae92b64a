"""No engine resumes another training than the one that was saved: one check for all of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import backends
from backends.base import Backend, BackendError, Optimization
from backends.process.rank import ProcessFacts
from backends.shared.same_training import difference, of_training

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).resolve().parents[1] / "parallel" / "tiny.py")
assert _spec is not None
assert _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

ENGINES = ["single", "ddp", "fsdp2", "horovod", pytest.param("deepspeed", marks=pytest.mark.slow)]
OTHERS: list[dict[str, Any]] = [
    {"precision": "fp16"},
    {"precision": "bf16"},
    {"optimizer": "adam"},
    {"optimizer": "sgd"},
    {"lr": 0.5},
    {"betas": (0.5, 0.9)},
    {"weight_decay": 0.0},
    {"clip_norm": None},
    {"schedule": "warmup_cosine"},
    {"warmup_steps": 3},
    {"total_steps": 7},
    {"accumulation": 2},
]


@pytest.fixture(scope="module")
def last() -> Iterator[dict[str, Backend]]:
    """Engines by name, one of each; they leave their process group at the end, as DeepSpeed joins one only once."""
    engines: dict[str, Backend] = {}
    yield engines
    for backend in engines.values():
        backend.close()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, last: dict[str, Backend]) -> Iterator[Any]:
    """(settings, optimization) -> a prepared backend of the engine, alone in this process."""
    if request.param in ("horovod", "deepspeed"):
        pytest.importorskip(request.param)
    made: list[Backend] = []

    def make(settings: dict[str, Any] | None = None, **optimization: Any) -> Backend:
        backend = backends.load(request.param)(
            backends.settings_from(request.param, settings or {}), ProcessFacts(), device="cpu", timeout_s=60
        )
        made.append(backend)
        last[request.param] = backend
        backend.prepare(tiny.Tiny(), Optimization(**optimization))
        return backend

    yield make
    for backend in made:
        backend.release()


def test_another_training_is_refused_by_name_and_changes_nothing(engine: Any, tmp_path: Path) -> None:
    saved = engine()
    saved.train_step(tiny.batches(0, 0, 1, 1))
    saved.save(tmp_path)
    for other in OTHERS:
        ((name, value),) = other.items()
        resumed = engine(**other)
        before = resumed.weights()
        shown = {"clip_norm": "none", "betas": r"\[0.5, 0.9\]"}.get(name, str(value))
        with pytest.raises(BackendError, match=rf"saved with {name} .*, this job has {shown}: resume with") as caught:
            resumed.load(tmp_path)
        assert "\n" not in str(caught.value)
        assert all(torch.equal(value, before[name]) for name, value in resumed.weights().items())
    again = engine()
    again.load(tmp_path)
    assert all(torch.equal(value, saved.weights()[name]) for name, value in again.weights().items())


def test_fp16_is_never_resumed_in_fp32(engine: Any, tmp_path: Path) -> None:
    saved = engine(precision="fp16")
    saved.train_step(tiny.batches(0, 0, 1, 1))
    saved.save(tmp_path)
    with pytest.raises(BackendError, match="saved with precision fp16, this job has fp32"):
        engine().load(tmp_path)
    engine(precision="fp16").load(tmp_path)


def test_damage_anywhere_in_any_file_is_one_line(engine: Any, tmp_path: Path) -> None:
    saved = engine()
    saved.train_step(tiny.batches(0, 0, 1, 1))
    saved.save(tmp_path)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        half = len(content) // 2
        for damage in (b"", b"{", b"[]", b"{}", content[:half], content[:-1], bytes(len(content)), content[half:]):
            file.write_bytes(damage)
            with pytest.raises(BackendError) as caught:
                saved.load(tmp_path)
            assert "\n" not in str(caught.value)
            assert str(tmp_path) in str(caught.value)
        file.write_bytes(content)
    saved.load(tmp_path)


def test_a_constant_schedule_may_be_made_longer() -> None:
    short, long = (Optimization(schedule="constant", total_steps=steps) for steps in (5, 50))
    assert difference(of_training(short), of_training(long)) is None
    ramp = Optimization(total_steps=50)
    assert difference(of_training(short), of_training(ramp)) == (
        "it was saved with schedule constant, this job has warmup_linear"
    )
