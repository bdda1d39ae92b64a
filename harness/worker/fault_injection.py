"""Planted faults, for tests and for showing that the harness notices: ``HARNESS_FAULT="kill:rank=1,step=5"``.

kinds: ``kill`` (SIGKILL to itself), ``raise`` (an exception), ``hang`` (sleeps for ever), ``slow`` (sleeps `ms` every
step from `step` on). Read from the environment only, so no job carries one by accident; a planted fault is printed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from harness.job.declaration import JobError

KINDS = ("kill", "raise", "hang", "slow")


class PlantedFaultError(RuntimeError):
    """Raised by the fault ``raise``."""


def before_step(rank: int, text: str | None = None) -> Callable[[int], None] | None:
    """The hook for this rank, None where no fault is planted. `text` defaults to $HARNESS_FAULT."""
    text = os.environ.get("HARNESS_FAULT", "") if text is None else text
    if not text:
        return None
    kind, _, rest = text.partition(":")
    try:
        values = {key: int(value) for key, value in (pair.split("=") for pair in rest.split(",") if pair)}
    except ValueError:
        raise JobError(f"HARNESS_FAULT={text}: write it as KIND:rank=R,step=S[,ms=M]") from None
    if kind not in KINDS:
        raise JobError(f"HARNESS_FAULT={text}: unknown kind '{kind}': choose one of {', '.join(KINDS)}")
    if values.get("rank", 0) != rank:
        return None
    at = values.get("step", 0)

    def hook(step: int) -> None:
        if step < at:
            return
        if kind == "slow":
            time.sleep(values.get("ms", 50) / 1000.0)
        elif step == at:
            print(f"planted fault: {text} on rank {rank} at step {step}", flush=True)
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kind == "hang":
                time.sleep(1e9)
            else:
                raise PlantedFaultError(f"planted at step {step}")

    return hook
