"""Why a job failed, as its ranks say it: the lines with `FAILURE_MARK` in a run's log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

FAILURE_MARK = "HARNESS-FAILURE"
_MARK = re.compile(rf"{FAILURE_MARK} rank=(\d+) user=([01]) (.*)$")
# horovodrun's ``[1]<stderr>:`` and Open MPI's ``[1,0]<stderr>:`` stand before every piece that a rank writes, so also
# between a line's text and its end, which Python writes apart.
_TAG = re.compile(r"\[\d+(?:,\d+)?\]<std(?:err|out)>:")
_CONSEQUENCE = re.compile(
    r"^TerminatedError:|^KeyboardInterrupt|Connection (closed|reset)|Broken pipe|HorovodInternalError|DistBackendError|"
    r"timed out|peer|Gloo|NCCL",
    re.IGNORECASE,
)


class LogPart:
    """What is written to the log at `path` from now on: a resumed run's log begins with how its first life ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._start)
                return file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []


def first_mark(log: Sequence[str]) -> tuple[int, bool, str] | None:
    """(rank, whether it is the user's mistake, text) of the first failing rank in a log whose message is a cause.

    A rank that lost its peer, or was ended by the launcher because another had died, is a consequence.
    """
    return next((mark for mark in _marks(log) if not is_consequence(mark[2])), None)


def is_consequence(text: str) -> bool:
    """Whether a failing rank's message says that it lost another, not why."""
    return _CONSEQUENCE.search(text) is not None


def silent_ranks(log: Sequence[str], world_size: int) -> list[int]:
    """The ranks that left no message where others did: killed, or out of memory. Empty where no rank left one."""
    spoke = {rank for rank, _, _ in _marks(log)}
    return sorted(set(range(world_size)) - spoke) if spoke else []


def _marks(log: Sequence[str]) -> list[tuple[int, bool, str]]:
    matches = filter(None, (_MARK.search(_TAG.sub("", line)) for line in log))
    return [(int(match[1]), match[2] == "1", match[3].rstrip()) for match in matches]
