"""What a user's job must keep to, tried on a few samples before anything is timed. Each violation is one ModelError.

The loss of a global batch is split over ranks and micro-batches in many ways; engines and numbers of workers are only
comparable where every split gives the same gradient. That needs a loss that is a mean over samples, samples that are
the same whenever and wherever they are read, and start weights that depend on nothing but the seed.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core_model.errors import ModelError
from core_model.user_job.dataset import content_hash, spread
from core_model.user_job.load import reason_of
from core_model.user_job.model import UserModel

SAMPLES = 4  # of the batch that is split
MORE_BATCHES = 3  # in which a parameter may yet get its gradient
TOLERANCE = 1e-3  # of the loss, relative: another batch size rounds otherwise


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found out about a job that may be trained.

    Args:
        samples: length of the data set.
        noisy: its forward pass draws random numbers.
        notes: sentences for the user.
        hints: what the user would train with.
    """

    samples: int
    noisy: bool
    notes: tuple[str, ...] = ()
    hints: dict[str, Any] = field(default_factory=dict)


def check(model: UserModel, *, device: torch.device | str = "cpu") -> Findings:
    """Tries the job of `model`, which is changed by it (gradients, random state), on `device`.

    Raises:
        ModelError: the first violation: the thing and the remedy.
    """
    name = model.source.label
    samples = _check_dataset(model, name)
    _check_pickle(model, name)
    _check_collate(model, samples, name)
    model.to(device).train()
    noisy = _check_forward(model, samples, device, name)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    _check_mean(model, samples, device, name, quiet=noisy or bool(norms))
    _check_gradients(model, device, name)
    notes = []
    if norms:
        notes.append(
            f"{name}: batch normalization takes its statistics from each rank's own micro-batch, in every engine: "
            "losses depend on the number of workers"
        )
    _check_evaluate(model, name)
    return Findings(samples=len(model.own_dataset()), noisy=noisy, notes=tuple(notes), hints=dict(model.job.optimizer))


def _check_dataset(model: UserModel, name: str) -> list[Any]:
    """A few samples, each the same when it is read again. Reading must not draw from torch's global generator: the
    loader reads in a thread beside the training, whose dropout draws from it."""
    dataset, file = model.own_dataset(), model.source.file
    samples = []
    for index in spread(len(dataset), SAMPLES):
        state = torch.get_rng_state()
        try:
            first = dataset.get(index)
            drew = not torch.equal(state, torch.get_rng_state())
            again = dataset.get(index)
        except Exception as error:
            raise ModelError(f"{name}: dataset[{index}] raised {reason_of(error, file)}") from error
        if content_hash(first) != content_hash(again):
            raise ModelError(
                f"{name}: dataset[{index}] differs when it is read again: draw its random numbers from a generator "
                "seeded by the index, or write get(index, epoch)"
            )
        if drew:
            raise ModelError(
                f"{name}: dataset[{index}] draws from torch's global generator: use one of its own, seeded by the index"
            )
        samples.append(first)
    while len(samples) < SAMPLES:
        samples.append(samples[0])
    return samples


def _check_pickle(model: UserModel, name: str) -> None:
    """Loading processes get dataset and collate by pickle; without such processes both could do, but a job is one job
    for every --loader-workers."""
    for part, value in (("dataset", model.job.dataset), ("collate", model.job.collate)):
        try:
            pickle.dumps(value)
        except Exception as error:
            raise ModelError(
                f"{name}: {part} cannot be pickled ({' '.join(str(error).split())[:120]}): define it at the top of the "
                "file, without lambda and open files"
            ) from error


def _check_collate(model: UserModel, samples: Sequence[Any], name: str) -> None:
    file = model.source.file
    for count in (1, len(samples)):
        state = torch.get_rng_state()
        try:
            batch, again = model.collate(samples[:count]), model.collate(samples[:count])
        except Exception as error:
            text = "a batch of one sample" if count == 1 else f"{count} samples"
            raise ModelError(
                f"{name}: collate raised {reason_of(error, file)} for {text}: it must take any number, a global batch "
                "is split"
            ) from error
        if content_hash(batch.content) != content_hash(again.content) or not torch.equal(state, torch.get_rng_state()):
            raise ModelError(
                f"{name}: collate draws random numbers: two calls must make the same batch; draw them in the data set, "
                "seeded by the index"
            )


def _loss(model: UserModel, samples: Sequence[Any], device: torch.device | str, name: str, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    try:
        return model(model.collate(samples).to(device))["loss"]
    except ModelError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(f"{name}: module(batch) raised {reason_of(error, model.source.file)}") from error


def _check_forward(model: UserModel, samples: Sequence[Any], device: torch.device | str, name: str) -> bool:
    """A finite loss that reaches the parameters. Returns whether it depends on random numbers (dropout)."""
    loss = _loss(model, samples, device, name)
    if not loss.requires_grad:
        raise ModelError(f"{name}: the loss has no gradient: compute it from the module's parameters, without detach")
    if not loss.dtype.is_floating_point or not torch.isfinite(loss):
        raise ModelError(f"{name}: the loss of the first batch is {loss.item()}: it must be finite")
    with torch.no_grad():
        same = _loss(model, samples, device, name)
        other = _loss(model, samples, device, name, seed=1)
    # Batch normalization changes its statistics in each call, not the loss: those of the batch itself normalize it.
    if not _close(loss, same):
        raise ModelError(
            f"{name}: the same batch with the same seed gives the losses {loss.item():.6g} and {same.item():.6g}: "
            "draw from torch's generators only, and keep no state from call to call"
        )
    return not torch.equal(same, other)


def _check_mean(
    model: UserModel, samples: Sequence[Any], device: torch.device | str, name: str, *, quiet: bool
) -> None:
    """The loss of all samples is the mean of the losses of 1 and of the rest, weighted by their numbers. quiet: in
    evaluation mode, because dropout or batch normalization is no mean over samples while it trains."""
    training = model.training
    model.train(training and not quiet)
    try:
        with torch.no_grad():
            whole = _loss(model, samples, device, name).double()
            first = _loss(model, samples[:1], device, name).double()
            rest = _loss(model, samples[1:], device, name).double()
    finally:
        model.train(training)
    count = len(samples)
    mean = (first + (count - 1) * rest) / count
    if _close(whole, mean):
        return
    looks = ""
    if _close(whole, first + rest):
        looks = "it looks like a sum: divide it by the number of samples"
    else:
        looks = "average each sample's loss first (over its tokens, its pixels), then over the samples"
    raise ModelError(
        f"{name}: the loss is not the mean over the samples: {count} samples give {whole.item():.6g}, the same in "
        f"parts of 1 and {count - 1} give {mean.item():.6g}: {looks}"
    )


def _check_gradients(model: UserModel, device: torch.device | str, name: str) -> None:
    """Every trainable parameter gets a gradient in one of the first batches: engines treat one without differently."""
    dataset = model.own_dataset()
    missing: list[str] = []
    for batch in range(1 + MORE_BATCHES):
        first = batch * SAMPLES
        samples = [dataset.get(index % len(dataset)) for index in range(first, first + SAMPLES)]
        _loss(model, samples, device, name).backward()
        missing = [key for key, p in model.module.named_parameters() if p.requires_grad and p.grad is None]
        if not missing:
            model.zero_grad(set_to_none=True)
            return
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise ModelError(
        f"{name}: parameter '{missing[0]}'{others} never gets a gradient: leave it out of the module, or freeze it "
        "(requires_grad_(False))"
    )


def _check_evaluate(model: UserModel, name: str) -> None:
    try:
        model.evaluate()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{name}: evaluate raised {reason_of(error, model.source.file)}") from error


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a.double() - b.double()).abs() <= TOLERANCE * a.double().abs() + 1e-7)
