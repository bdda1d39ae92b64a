"""What an elastic job commits: a copy in host memory, and all that training changes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import backends
from backends.base import Optimization
from backends.horovod.elastic import _make_state, host_copy
from backends.process.rank import ProcessFacts

pytest.importorskip("horovod")

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).resolve().parents[1] / "parallel" / "tiny.py")
assert _spec is not None
assert _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


class OnGpu(torch.Tensor):
    """Stands for a tensor on a GPU: a copy that is made where it lives fails."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("copied where it lives")

    def clone(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("copied where it lives")


def tensors(value: Any) -> list[torch.Tensor]:
    if torch.is_tensor(value):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [found for child in children for found in tensors(child)]


def test_a_commit_is_in_host_memory_and_brings_training_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import horovod.torch as hvd

    backend: Any = backends.load("horovod")(backends.settings_from("horovod", {}), ProcessFacts(), device="cpu")
    try:
        backend.prepare(tiny.Tiny(), Optimization(precision="fp16"))
        monkeypatch.setenv("HOROVOD_ELASTIC", "1")
        for step in range(3):
            backend.train_step(tiny.batches(step, 0, 1, 1))
        state = _make_state(backend, hvd)
        moments = backend._optimizer.state
        plain = {key: dict(entry) for key, entry in moments.items()}
        for entry in moments.values():
            for name in ("exp_avg", "exp_avg_sq"):
                entry[name] = entry[name].as_subclass(OnGpu)
        state.save()
        moments.update(plain)
        saved = backend.state()
        before = [tensor.clone() for tensor in tensors(saved)]
        assert len(tensors(state._saved)) == len(before) > 20
        assert {tensor.device.type for tensor in tensors(state._saved)} == {"cpu"}
        assert not {t.data_ptr() for t in tensors(saved)} & {t.data_ptr() for t in tensors(state._saved)} - {0}
        for _ in range(2):  # the commit outlives being restored and trained on
            for step in range(3, 6):
                backend.train_step(tiny.batches(step, 0, 1, 1))
            state.restore()
            assert backend.step == 3
            for found, wanted in zip(tensors(backend.state()), before, strict=True):
                assert torch.equal(found, wanted)
    finally:
        backend.close()


def test_containers_stay_what_they_are() -> None:
    value = {"a": [torch.ones(2), (1, "x")], "b": None}
    copied = host_copy(value)
    value["a"][0].zero_()
    assert copied["a"][0].tolist() == [1.0, 1.0]
    assert copied["a"][1] == (1, "x")
    assert copied["b"] is None
