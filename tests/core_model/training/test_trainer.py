"""The training loop's records, from a backend whose steps are planted."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from backends.base import StepReport
from core_model.training.dropout_seeds import step_seeds
from core_model.training.trainer import Plan, Trainer, TrainingDivergedError
from harness.records.soundness import schema_errors
from harness.records.step_metrics import smooth_loss, summarize, time_to_target


class Planted:
    """One process whose loss is 1 / (step + 1), or what `odd` says of a step: (loss, whether it was skipped)."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, odd: dict[int, tuple[float, bool]], start: int = 0, pace_s: float = 0.0) -> None:
        self.odd, self.step, self.pace_s = odd, start, pace_s

    def train_step(self, _batches: Sequence[Any]) -> StepReport:
        loss, skipped = self.odd.get(self.step, (1 / (self.step + 1), False))
        self.step += 1
        time.sleep(self.pace_s)
        losses = {"loss": torch.tensor(loss), "ce": torch.tensor(loss)}
        return StepReport(losses=losses, grad_norm=loss, loss_scale=1.0, skipped=skipped, lr=1e-3)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def gather(self, value: Any) -> list[Any]:
        return [value]


def trained(backend: Planted, **plan: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    plan = {"steps": 20, "log_every": 5, **plan}
    Trainer(backend, [[]] * 100, Plan(**plan), on_rows=rows.extend).train()  # type: ignore[arg-type]
    return rows


def test_an_fp16_step_that_overflowed_in_forward_is_recorded_as_skipped() -> None:
    rows = trained(Planted({4: (math.nan, True), 7: (math.inf, True)}), scaled=True)
    assert [row["step"] for row in rows] == list(range(20))
    assert [row["step"] for row in rows if row["loss"] is None and row["losses"] == {"ce": None}] == [4, 7]
    assert [row["step"] for row in rows if row["skipped"]] == [4, 7]
    assert not [text for row in rows for text in schema_errors("steps", row)]


@pytest.mark.parametrize("skipped", [False, True])
def test_a_loss_that_is_not_finite_where_nothing_is_scaled_ends_the_run(skipped: bool) -> None:
    rows: list[dict[str, Any]] = []
    trainer = Trainer(
        Planted({7: (math.nan, skipped)}), [[]] * 20, Plan(steps=20, log_every=5), on_rows=rows.extend  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(TrainingDivergedError, match="the loss is nan at step 7"):
        trainer.train()
    assert [row["step"] for row in rows] == list(range(7)), "what came before it is recorded"


def test_a_resumed_run_goes_on_counting_its_time_and_warms_up_again() -> None:
    first = trained(Planted({}, pace_s=0.002), steps=20)
    kept = first[:15]
    second = trained(Planted({}, start=15, pace_s=0.002), steps=30, start_step=15, start_s=kept[-1]["t"])
    rows = kept + second
    assert [row["step"] for row in rows] == list(range(30))
    assert [row["step"] for row in rows if row.get("restarted")] == [15]
    assert [row["t"] for row in rows] == sorted(row["t"] for row in rows)
    second[0]["step_s"] = 30.0  # compiling again
    figures = summarize(rows, warmup=3)
    assert figures["warmup_steps"] == 6
    assert figures["step_s"]["n"] == 24
    assert figures["step_s"]["p99"] < 1.0
    reached = time_to_target(smooth_loss(rows, window=1), 1.001 / 21, higher_is_better=False)
    assert reached == pytest.approx(rows[20]["t"], rel=0.2)
    assert reached > kept[-1]["t"]


def masks(seed: int, step: int, rank: int, model: torch.nn.Module) -> torch.Tensor:
    begin = step_seeds(model, seed)
    assert begin is not None
    begin(step, rank)
    return model(torch.ones(200))


def test_dropout_is_of_the_step_and_the_rank_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Dropout(0.5))
    first = masks(0, 3, 0, model)
    torch.rand(7)
    assert torch.equal(masks(0, 3, 0, model), first), "a step that is trained again"
    for other in ((0, 3, 1), (0, 4, 0), (1, 3, 0)):
        assert not torch.equal(masks(*other, model), first), other
    assert step_seeds(torch.nn.Linear(2, 2), 0) is None
