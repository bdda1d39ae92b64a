"""How a failing rank says why: to a supervisor by one marked line, by hand to the person at the terminal.

The first rank that fails must be heard: the launcher ends the others at once, so that all they know is a signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from backends.process.rank import ProcessFacts
from harness.protocol import terminated
from harness.protocol.console import Output, write_line
from harness.protocol.failure_marks import FAILURE_MARK, is_consequence

# A user's mistake mostly meets every rank. Rank 0 says it; the others speak if nobody has ended them meanwhile.
_TURN_S = 2.0


def write_failure_mark(rank: int, text: str, *, user: bool) -> None:
    """The line that a supervisor finds in log.txt. user: the user can mend it."""
    with contextlib.suppress(OSError):  # the supervisor is gone: the record is still to be ended
        write_line(f"{FAILURE_MARK} rank={rank} user={int(user)} {text}", sys.stderr)


def print_failure(output: Output, facts: ProcessFacts, text: str, *, user: bool) -> None:
    """Says to the person who started this rank by hand why it failed; nothing under a supervisor."""
    if not output.by_hand:
        return
    rank, log = facts.rank, output.log
    where = f"\nsee {log}" if log is not None and rank == 0 else ""
    other = output.first_cause() if is_consequence(text) else None
    if other is not None and other[0] != rank:
        if rank == 0:
            output.complain(f"error: rank {other[0]}: {other[2]}{where}")
    elif text.startswith(terminated.TerminatedError.__name__):
        if rank == 0:
            told = "the launcher ends all ranks when one fails, or somebody ended the job"
            output.complain(f"error: rank 0 was {text.partition(': ')[2]} ({told}){where}")
    elif not user:
        _for_torchrun(text)
        early = [] if log is not None else output.early_lines()
        output.complain("\n".join([*early, f"error: rank {rank} failed: {text}{where}"]))
    elif rank == 0:
        _for_torchrun(text)
        output.complain(f"error: {text}")
    else:
        end = time.monotonic() + _TURN_S
        while time.monotonic() < end:
            if terminated.came():
                return
            time.sleep(0.05)
        _for_torchrun(text)
        output.complain(f"error: rank {rank}: {text}")


def _for_torchrun(text: str) -> None:
    """torchrun's own report names the first failure and repeats what its file says (torch.distributed.elastic)."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    said = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps({"message": said}))
    except OSError:  # the terminal has the same
        return
