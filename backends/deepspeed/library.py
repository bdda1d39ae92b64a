"""DeepSpeed as a library in our process: how it is imported, and what it leaves behind that another engine, model or
clone must not meet."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import functional

from backends.base import BackendError
from backends.deepspeed.compile_ops import extensions_folder


def import_deepspeed() -> Any:
    """DeepSpeed prints configuration and flattening notes at INFO on every rank; warnings are enough."""
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder()))
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch 2.13 deprecates: one line a call and rank, nothing a user can
    # mend.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    return deepspeed


def skip_shared_memory_op(deepspeed: Any) -> None:
    """On the CPU, DeepSpeed's communication set-up compiles a shared-memory all-reduce (20 s, needs g++) that only
    inference_all_reduce uses; training never calls it (deepspeed/comm/torch.py)."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextmanager
def refusals() -> Iterator[None]:
    """What DeepSpeed raises within over a job that it cannot do, or an extension that it cannot compile, becomes one
    line.

    Raises:
        BackendError: in its place; every other error comes through as it is.
    """
    try:
        yield
    except BackendError:
        raise
    except (AssertionError, ValueError, NotImplementedError) as error:
        raise BackendError(f"deepspeed refuses this job: {' '.join(str(error).split())[:300]}") from None
    except Exception as error:  # what the compiler of an extension raises has no common class
        if not _is_build_failure(error):
            raise
        raise BackendError(
            f"deepspeed could not compile its optimizer ({' '.join(str(error).split())[:160]}): "
            "use optimizer_impl=torch, or install g++, ninja and, for a GPU, the CUDA toolkit of this torch"
        ) from None


def _is_build_failure(error: Exception) -> bool:
    """Whether `error` came out of building or loading one of DeepSpeed's extensions."""
    words = ("Error building extension", "Unable to JIT load", "CUDA_HOME", "Ninja is required", "nvcc")
    return type(error).__name__ == "CUDAMismatchException" or any(word in str(error) for word in words)


@contextmanager
def linear(function: Any) -> Iterator[None]:
    """torch.nn.functional.linear is `function` within."""
    plain, functional.linear = functional.linear, function
    try:
        yield
    finally:
        functional.linear = plain


def forget_autocast() -> None:
    """torch_autocast leaves process-wide flags that a later engine with another precision would obey."""
    from deepspeed.runtime import torch_autocast

    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    torch_autocast.TORCH_AUTOCAST_DTYPE = None


def forget(engine: Any) -> None:
    """Lets go of the engine's tensors. ``destroy()`` leaves closures of the engine and of its optimizer in hooks that
    autograd keeps for good, so that neither is ever collected: the next engine of the process would have weights,
    masters and moments of this one beside its own (5.8 GiB more at 608 M parameters on an H100)."""
    for holder in (engine.optimizer, getattr(engine.optimizer, "parameter_offload", None), engine):
        if holder is not None:
            holder.__dict__.clear()
