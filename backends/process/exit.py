"""How a worker ends: at once, with its exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

_MPI_LIMIT_S = 60


def run_and_leave(main: Callable[[], None]) -> NoReturn:
    """Runs a worker's `main` and ends the process by `leave`."""
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code)


def leave(code: int) -> NoReturn:
    """Ends the process without the interpreter's own shutdown.

    That shutdown could wait for collectives which the other ranks never join, and a thread of gloo that is still
    running then aborts the process ("terminate called without an active exception") although its work was done.
    """
    if code == 0:
        _finalize_mpi()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _finalize_mpi() -> None:
    """What mpirun wants of every rank that ends well and has started MPI: else it ends with 1 ("exiting improperly").

    Only where mpi4py has started it (`backends.torch.rendezvous`); Horovod's shutdown ends what Horovod started. It
    waits for the other ranks, at most `_MPI_LIMIT_S`: SIGALRM then ends this process. After a failure it is not called.
    """
    loaded = sys.modules.get("mpi4py.MPI")
    if loaded is None or not loaded.Is_initialized() or loaded.Is_finalized():
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_MPI_LIMIT_S)
    loaded.Finalize()
    signal.alarm(0)
