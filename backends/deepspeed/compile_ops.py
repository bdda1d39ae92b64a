"""Compiles DeepSpeed's own optimizer before it is needed, one process at a time, and never waits for a dead one.

torch's extension builder guards a build by a file named ``lock`` that it removes when it is done; a build that was
killed leaves it behind, and every later build waits for it for ever. Here the build is done under a lock of the
operating system, which a dying process gives back, so a ``lock`` file found under it is a leftover and is removed.

And DeepSpeed reads TORCH_CUDA_ARCH_LIST without the letters that CUDA's own images put there: "9.0a" ends it with
"invalid literal for int()" (deepspeed/ops/op_builder/builder.py, `compute_capability_args`; DeepSpeed's pull request
8619 would mend it).
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.base import BackendError

_ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
_LIMIT_S = 900.0  # half a minute on an idle machine, minutes where compilers compete


def build_adam(*, on_cpu: bool, limit_s: float = _LIMIT_S) -> None:
    """Compiles and loads CPUAdam (`on_cpu`: for offload) or FusedAdam, unless that was done before.

    Raises BackendError where another process builds for longer than `limit_s`; what the compiler raises comes through.
    """
    from deepspeed.accelerator import get_accelerator

    if (listed := os.environ.get(_ARCHITECTURES)) is not None:
        os.environ[_ARCHITECTURES] = without_letters(listed)
    builder: Any = get_accelerator().create_op_builder("CPUAdamBuilder" if on_cpu else "FusedAdamBuilder")
    if builder is None:
        return
    folder = extensions_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, limit_s):
        for leftover in folder.rglob(f"{builder.name}/lock"):
            leftover.unlink(missing_ok=True)
        said = to_compile(builder.name, folder)
        if said:
            print(said, file=sys.stderr, flush=True)
        began = time.monotonic()
        builder.load(verbose=False)
        if said:
            print(f"compiled {builder.name} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def to_compile(name: str, folder: Path | None = None) -> str:
    """One line where DeepSpeed's extension `name` (cpu_adam, fused_adam) is still to be compiled, "" where it is there.

    Args:
        folder: of the extensions; None = the one that the workers will use.
    """
    if any((folder or extensions_folder()).rglob(f"{name}/{name}.so")):
        return ""
    return f"DeepSpeed compiles its optimizer ({name}) on first use: one to three minutes, later runs find it"


def without_letters(architectures: str) -> str:
    """A TORCH_CUDA_ARCH_LIST that DeepSpeed can read: ``9.0a;8.0+PTX`` -> ``9.0;8.0+PTX``. DeepSpeed's optimizers use
    nothing that the letters stand for (features of one architecture alone)."""
    return re.sub(r"(\d+\.\d+)[a-z]+", r"\1", architectures)


def extensions_folder() -> Path:
    """Where compiled extensions are: as named by TORCH_EXTENSIONS_DIR; else in the virtual environment, where
    scripts/warm_deepspeed.py has compiled them; else torch's own default, which clones share."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return Path(sys.prefix) / "torch_extensions"
    from torch.utils.cpp_extension import get_default_build_root

    return Path(get_default_build_root())


@contextmanager
def alone(folder: Path, limit_s: float) -> Iterator[None]:
    """Holds `folder`/.build: one process of this machine at a time. Raises BackendError after `limit_s`."""
    end = time.monotonic() + limit_s
    with (folder / ".build").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise BackendError(
                        f"another process has been compiling DeepSpeed's extensions in {folder} for {limit_s:.0f} s: "
                        "wait for it, or use optimizer_impl=torch"
                    ) from None
                time.sleep(0.2)
        yield
