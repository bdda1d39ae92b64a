"""How a worker ends: at once, with its exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def run_and_leave(main: Callable[[], None]) -> NoReturn:
    """Runs a worker's `main` and ends the process without the interpreter's own shutdown.

    That shutdown could wait for collectives which the other ranks never join, and a thread of gloo that is still
    running then aborts the process ("terminate called without an active exception") although its work was done.
    Not for a worker whose mpirun is judged by its exit code: it wants MPI finalized by every rank.
    """
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
