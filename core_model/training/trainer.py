"""The training loop: micro-batches in, rows of figures out. Its only collaborator is a Backend.

The loop holds no host synchronization in a step: reports stay on the device until the window is flushed, every
`log_every` steps and outside the timed region, where the ranks' losses are averaged and their step times gathered in
one exchange each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backends.base import Backend, StepReport
from core_model.training.clock import Clock
from core_model.training.prefetch import on_device


def in_turn(*hooks: Callable[[int], None] | None) -> Callable[[int], None]:
    """One before_step that calls those of `hooks` that there are, in this order."""
    there = [hook for hook in hooks if hook is not None]

    def all_of_them(step: int) -> None:
        for hook in there:
            hook(step)

    return all_of_them


class TrainingDivergedError(RuntimeError):
    """The loss is not finite although it was not scaled, or no overflow was skipped."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train, and how often to report. Steps are optimizer steps.

    Args:
        steps: to train, those before a resumption among them.
        start_step, start_s: of a resumed run, the steps finished and the seconds that they took.
        scaled: the loss is scaled (fp16), so that it may overflow in a step which is then skipped.
        log_every: steps between two exchanges of losses and times.
        checkpoint_every: steps between two checkpoints; 0 = none.
        samples_per_step, steps_per_epoch: of all ranks together, for the rows.
    """

    steps: int
    start_step: int = 0
    start_s: float = 0.0
    scaled: bool = False
    log_every: int = 10
    checkpoint_every: int = 0
    samples_per_step: int = 1
    steps_per_epoch: float = math.inf


@dataclass(frozen=True, kw_only=True)
class _Pending:
    step: int
    report: StepReport
    begin: Any
    end: Any
    data_s: float


class Trainer:
    """Runs `plan` on `backend`.

    Args:
        batches: yields, per optimizer step, this rank's list of micro-batches (anything with ``to(device)``).
        on_rows: called on rank 0 with the window's rows (see `harness.records.record_files` for their keys).
        on_checkpoint: called on EVERY rank with the number of finished steps.
        before_step, after_step: called on every rank with the step number, outside the timed region (faults, profiles);
            the latter at the step's own end, before anything is flushed or saved.
    """

    def __init__(
        self,
        backend: Backend,
        batches: Iterable[Sequence[Any]],
        plan: Plan,
        *,
        on_rows: Callable[[list[dict[str, Any]]], None],
        on_checkpoint: Callable[[int], None] | None = None,
        before_step: Callable[[int], None] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        self.backend, self.batches, self.plan = backend, batches, plan
        self.on_rows, self.on_checkpoint = on_rows, on_checkpoint
        self.before_step, self.after_step = before_step, after_step
        self.clock = Clock(backend.device)
        self._pending: list[_Pending] = []
        self._restarts = {plan.start_step} - {0}  # steps before which the workers, or their world, were made anew

    def train(self) -> int:
        """Trains to `plan.steps`; returns the number of finished steps. Raises TrainingDivergedError or what the engine
        or the data raises."""
        plan, backend, clock = self.plan, self.backend, self.clock
        iterator = on_device(self.batches, backend.device)
        self._started = time.perf_counter() - plan.start_s
        step = plan.start_step
        try:
            while step < plan.steps:
                if self.before_step is not None:
                    self.before_step(step)
                begin, fetch_started = clock.mark(), time.perf_counter()
                micro_batches = next(iterator, None)
                if micro_batches is None:
                    break
                data_s = time.perf_counter() - fetch_started
                report = backend.train_step(micro_batches)
                self.note(step, report, begin, data_s)
                step += 1
                due = plan.checkpoint_every and step % plan.checkpoint_every == 0 and step < plan.steps
                if step % plan.log_every == 0 or step == plan.steps or due:
                    self._flush()
                if due and self.on_checkpoint is not None:
                    self.on_checkpoint(step)
        finally:
            iterator.close()
        if self._pending:
            self._flush()
        return step

    def note(self, step: int, report: StepReport, begin: Any, data_s: float) -> None:
        """Puts a step that ends now into the window.

        Args:
            begin: its first mark.
            data_s: seconds it waited for its batch.
        """
        end = self.clock.mark()
        self._pending.append(_Pending(step=step, report=report, begin=begin, end=end, data_s=data_s))
        if self.after_step is not None:
            self.after_step(step)

    def _flush(self) -> None:
        """Averages the window's losses over the ranks, gathers step times, hands rows to rank 0."""
        pending, self._pending = self._pending, []
        self.clock.settle()
        elapsed = time.perf_counter() - self._started
        names = sorted(pending[0].report.losses)
        local = torch.stack([torch.stack([item.report.losses[n].detach().float() for n in names]) for item in pending])
        means = (self.backend.sum(local) / self.backend.world_size).tolist()
        times = [self.clock.seconds(item.begin, item.end) for item in pending]
        gathered = self.backend.gather((times, [item.data_s for item in pending]))
        rows: list[dict[str, Any]] = []
        for index, (item, values) in enumerate(zip(pending, means, strict=True)):
            losses = dict(zip(names, values, strict=True))
            report = item.report
            skipped = bool(report.skipped)
            # DeepSpeed also skips a step whose norm is not finite where nothing is scaled: that is no overflow.
            if not math.isfinite(losses["loss"]) and not (skipped and self.plan.scaled):
                self._emit(rows)
                raise TrainingDivergedError(
                    f"the loss is {losses['loss']} at step {item.step}: lower the learning rate, or use fp32"
                )
            if gathered is None:
                continue
            rank_times = [rank[0][index] for rank in gathered]
            # A synchronous step lasts as long as its slowest rank.
            rows.append(
                {
                    "step": item.step,
                    "epoch": item.step / self.plan.steps_per_epoch,
                    "loss": _number(losses.pop("loss")),
                    "losses": {name: _number(value) for name, value in losses.items()},
                    "grad_norm": _number(report.grad_norm),
                    "loss_scale": _number(report.loss_scale),
                    "skipped": skipped,
                    "lr": report.lr,
                    "step_s": max(rank_times),
                    "data_s": max(rank[1][index] for rank in gathered),
                    "t": elapsed - self.clock.seconds(item.end, pending[-1].end),
                    "samples": self.plan.samples_per_step,
                    "rank_step_s": rank_times,
                    **({"restarted": True} if item.step in self._restarts else {}),
                }
            )
        self._emit(rows)

    def _emit(self, rows: list[dict[str, Any]]) -> None:
        if rows and self.backend.rank == 0:
            self.on_rows(rows)


def _number(value: Any) -> float | None:
    """A float for the record; None where there is none or it is not finite (an overflow)."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
