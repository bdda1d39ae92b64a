"""A rank that is asked to end (SIGTERM) ends soon, also where its code waits in C++ for ranks that will not come.

Python runs a signal's handler between two of its own instructions. A rank that waits in a store or a collective is not
there for minutes: torchrun and deepspeed kill it after 30 s, and whoever looks at the terminal waits as long.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

_GRACE_S = 3.0


class TerminatedError(RuntimeError):
    """The launcher or the system asked this process to end."""


_signals: list[int] = []
_ending = threading.Lock()


def came() -> bool:
    """Whether this process was asked to end."""
    return bool(_signals)


def begin_to_end() -> bool:
    """Whether the caller is the first that ends this process: from now on a signal raises nothing any more."""
    return _ending.acquire(blocking=False)


def as_ended(error: BaseException) -> BaseException:
    """What ended the job: the signal, if one came. Raised at any place, inside an import say, its exception can come
    out as quite another (seen: RecursionError), which would be taken for the cause."""
    if _signals and not isinstance(error, TerminatedError):
        return TerminatedError(f"ended by signal {_signals[0]}")
    return error


def on_sigterm(give_up: Callable[[BaseException], None]) -> None:
    """From now on SIGTERM raises TerminatedError in the main thread. give_up: is called in another thread where the
    main thread has not begun to end some seconds later; it ends the process. A later call replaces it."""
    first = not _give_up
    _give_up[:] = [give_up]
    signal.signal(signal.SIGTERM, _on_signal)
    if first:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=_wait, args=(reading,), daemon=True, name="sigterm").start()


_give_up: list[Callable[[BaseException], None]] = []


def _wait(reading: int) -> None:
    """Python's own C-level handler writes each signal's number to the pipe at once."""
    while signal.SIGTERM not in os.read(reading, 64):
        pass
    time.sleep(_GRACE_S)
    if begin_to_end():
        _signals.append(signal.SIGTERM)
        _give_up[0](TerminatedError(f"ended by signal {int(signal.SIGTERM)}"))


def _on_signal(number: int, frame: FrameType | None) -> None:
    _signals.append(number)
    if not _ending.locked():
        raise TerminatedError(f"ended by signal {number}")
