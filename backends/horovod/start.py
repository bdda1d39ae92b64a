"""Starting Horovod: its core reads its settings from the environment in ``hvd.init``, and only there.

A second engine of one process with other settings would train with the first one's and describe its own, so it is
refused in one line: each setting has processes of its own. Starting Horovod again is no way out. Where Horovod started
MPI it ends MPI too, which cannot come back. And the tuner's table of parameters lives as long as the process: what was
fixed in it stays when its variable is gone, and with both fusion and cycle in it the next ``hvd.init`` ends in a
segmentation fault (Horovod 0.28.1).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from backends.base import BackendError

REMEDY = "give each its own processes (`harness experiment parity` and `harness compare` do)"
_LASTING = {
    "HOROVOD_FUSION_THRESHOLD",
    "HOROVOD_CYCLE_TIME",
    "HOROVOD_CACHE_CAPACITY",
    "HOROVOD_HIERARCHICAL_ALLREDUCE",
    "HOROVOD_HIERARCHICAL_ALLGATHER",
    "HOROVOD_TORUS_ALLREDUCE",
}

_before: dict[str, str | None] = {}  # what the variables were before we set them, None = not there
_read: dict[str, str] | None = None  # what the core read last
_fixed: dict[str, str] = {}  # what is in the tuner's table
_owns_mpi = False  # Horovod started MPI, and takes it along when it is shut down


def start(variables: Mapping[str, str]) -> Any:
    """horovod.torch, started with `variables` in its environment, or running with them already. Collective.

    Variables of an engine before, which has left Horovod, are taken out of the environment. Raises BackendError where
    Horovod runs with others or cannot be started again; what ``hvd.init`` raises goes through.
    """
    global _read, _owns_mpi, _fixed
    wanted = dict(variables)
    if _read is not None:
        import horovod.torch as hvd

        if hvd.is_initialized() and wanted == _read:
            return hvd
        if hvd.is_initialized():
            odd = next(name for name in sorted({*wanted, *_read}) if wanted.get(name) != _read.get(name))
            raise BackendError(
                f"horovod runs in this process with {odd}={_read.get(odd, 'unset')}, which it read when it started; "
                f"this engine wants {wanted.get(odd, 'unset')}: {REMEDY}"
            )
    for name, value in _before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _before.clear()
    fixed = {name: v for name, v in {**os.environ, **wanted}.items() if name in _LASTING or "_AUTOTUNE" in name}
    both = {"HOROVOD_FUSION_THRESHOLD", "HOROVOD_CYCLE_TIME"} <= set(_fixed)
    if _read is not None and (_owns_mpi or both or (_fixed and _fixed != fixed)):
        raise BackendError(f"horovod has left this process and cannot be started in it again: {REMEDY}")
    _before.update({name: os.environ.get(name) for name in wanted})
    os.environ.update(wanted)
    import horovod.torch as hvd

    hvd.shutdown()  # where a peer's shutdown has ended ours, or there was none: nothing happens
    mpi = sys.modules.get("mpi4py.MPI")
    held = mpi is not None and mpi.Is_initialized()
    hvd.init()
    _read, _fixed, _owns_mpi = wanted, fixed, bool(hvd.mpi_built() and hvd.mpi_enabled()) and not held
    return hvd
