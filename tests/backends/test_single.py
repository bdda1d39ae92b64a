"""The reference engine against a loop written by hand, its checkpoints, and the files it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import backends
from backends.base import Backend, BackendError, Optimization
from backends.process.rank import ProcessFacts

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).resolve().parents[1] / "parallel" / "tiny.py")
assert _spec is not None
assert _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


def made(model: torch.nn.Module | None = None, **optimization: Any) -> Backend:
    backend = backends.load("single")(backends.settings_from("single", {}), ProcessFacts(), device="cpu")
    backend.prepare(model or tiny.Tiny(), Optimization(**optimization))
    return backend


def trained(backend: Backend, begin: int, end: int, accumulation: int = 1) -> list[Any]:
    return [backend.train_step(tiny.batches(step, 0, 1, accumulation)) for step in range(begin, end)]


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("clip_norm", [0.5, None])
def test_it_is_the_loop_one_would_write(accumulation: int, clip_norm: float | None) -> None:
    optimization = Optimization(accumulation=accumulation, clip_norm=clip_norm, warmup_steps=2, total_steps=8)
    backend = made(accumulation=accumulation, clip_norm=clip_norm, warmup_steps=2, total_steps=8)
    reports = trained(backend, 0, 8, accumulation)
    model = tiny.Tiny()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-3)
    for step in range(8):
        optimizer.param_groups[0]["lr"] = optimization.lr_at(step)
        for micro in tiny.batches(step, 0, 1, accumulation):
            (model(micro)["loss"] / accumulation).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm if clip_norm is not None else float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        assert float(reports[step].grad_norm) == pytest.approx(float(norm), rel=1e-6)
    for name, value in backend.weights().items():
        torch.testing.assert_close(value, dict(model.named_parameters())[name].detach(), rtol=1e-6, atol=1e-8)


def test_frozen_parameters_stay_and_are_not_weights() -> None:
    backend = made()
    before = backend.model.frozen.weight.clone()
    trained(backend, 0, 3)
    assert torch.equal(backend.model.frozen.weight, before)
    assert set(backend.weights()) == {n for n, p in tiny.Tiny().named_parameters() if p.requires_grad}


def test_losses_are_means_over_micro_batches() -> None:
    whole, parts = made(), made(accumulation=4)
    one, four = trained(whole, 0, 1)[0], trained(parts, 0, 1, 4)[0]
    assert set(one.losses) == {"loss", "ce"}
    assert float(one.losses["loss"]) == pytest.approx(float(four.losses["loss"]), rel=1e-6)


def test_a_wrong_number_of_micro_batches_is_refused() -> None:
    with pytest.raises(BackendError, match="a step takes 2 micro-batches, it got 1"):
        trained(made(accumulation=2), 0, 1, 1)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(BackendError, match="no trainable parameter"):
        made(tiny.Tiny().requires_grad_(False))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_is_bit_equal(tmp_path: Path, precision: str) -> None:
    whole = made(precision=precision)
    trained(whole, 0, 8)
    half = made(precision=precision)
    trained(half, 0, 4)
    half.save(tmp_path)
    resumed = made(tiny.Tiny(), precision=precision)
    resumed.load(tmp_path)
    trained(resumed, 4, 8)
    expected = whole.weights()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.weights().items())


def test_loading_drops_the_gradients_of_a_step_that_was_cut(tmp_path: Path) -> None:
    backend, unbroken = made(), made()
    trained(backend, 0, 2)
    trained(unbroken, 0, 4)
    backend.save(tmp_path)
    (batch,) = tiny.batches(2, 0, 1, 1)
    backend.model(batch)["loss"].backward()
    backend.load(tmp_path)
    trained(backend, 2, 4)
    for name, value in backend.weights().items():
        assert torch.equal(value, unbroken.weights()[name]), name


def test_damaged_and_foreign_checkpoints_are_one_line(tmp_path: Path) -> None:
    backend = made()
    trained(backend, 0, 1)
    with pytest.raises(BackendError, match=r"no state\.pt there"):
        backend.load(tmp_path)
    backend.save(tmp_path)
    file = tmp_path / "state.pt"
    content = file.read_bytes()
    for damage in (content[: len(content) // 2], b"", b"hello", content[:-20]):
        file.write_bytes(damage)
        with pytest.raises(BackendError, match="truncated or foreign") as caught:
            backend.load(tmp_path)
        assert "\n" not in str(caught.value)
    torch.save({"a": 1}, file)
    with pytest.raises(BackendError, match="not a checkpoint of this program"):
        backend.load(tmp_path)
    state = {"engine": "ddp", "world_size": 2}
    torch.save(state, file)
    with pytest.raises(BackendError, match="a checkpoint of engine 'ddp', this run uses 'single'"):
        backend.load(tmp_path)
    torch.save(state | {"engine": "single"}, file)
    with pytest.raises(BackendError, match="saved by 2 workers, this run has 1"):
        backend.load(tmp_path)


def test_a_checkpoint_of_another_model_or_precision_is_one_line(tmp_path: Path) -> None:
    backend = made()
    backend.save(tmp_path)
    with pytest.raises(BackendError, match="another model: it differs in tensor 'spare'"):
        made(tiny.Tiny(spare=True)).load(tmp_path)
    with pytest.raises(BackendError, match="saved with precision fp32, this job has fp16"):
        made(precision="fp16").load(tmp_path)


def test_more_than_one_process_is_refused() -> None:
    with pytest.raises(BackendError, match="use ddp"):
        backends.load("single")(
            backends.settings_from("single", {}), ProcessFacts(world_size=2, launcher="torchrun"), device="cpu"
        )


def test_cuda_without_a_gpu_is_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="torch finds no GPU here"):
        backends.load("single")(backends.settings_from("single", {}), ProcessFacts(), device="cuda")


def test_describe_is_json_and_tells_what_was_used() -> None:
    facts = made(precision="fp16").describe()
    assert facts["optimizer"]["class"] == "torch.optim.adamw.AdamW"
    assert facts["optimizer"]["weight_decay"] == 1e-3
    assert facts["loss_scale_rule"]["initial"] == 4096
    assert facts["master_weights"] == "fp32"
