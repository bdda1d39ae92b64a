"""What a rank wrote before there was a log, for the person at the terminal, if the rank dies without a word.

A rank that was started by hand writes into a buffer file until the run's log is known. MPI, NCCL or a C++ library may
end the process there (abort, exit, out of memory) without Python noticing. A child process that only waits for the
rank's end shows the last lines then.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from harness.protocol.failure_marks import FAILURE_MARK

_SHOWN = 12  # lines
_MOST_BYTES = 1 << 16


class EarlyWatch:
    """Watches this process until `dismiss`. Made before any thread is started: it forks."""

    def __init__(self, buffer: Path, terminal: int, rank: int) -> None:
        """buffer: what the rank writes to. terminal: descriptor of the launcher's terminal or pipe."""
        reading, self._writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._writing)
                _wait_and_tell(reading, terminal, buffer, rank)
            finally:
                os._exit(0)
        os.close(reading)

    def dismiss(self) -> None:
        """The rank has said what there is to say, or has a log."""
        if self._pid:
            os.write(self._writing, b".")
            os.close(self._writing)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _wait_and_tell(reading: int, terminal: int, buffer: Path, rank: int) -> None:
    # What ends the rank ends its process group; this process ends with the rank anyway.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.read(reading, 1):
        return
    lines = last_lines(buffer)
    told = ". The last that it wrote:" if lines else ", and wrote nothing"
    text = "\n".join([f"error: rank {rank} ended without a message (killed, or by native code){told}", *lines])
    os.write(terminal, f"{text}\n".encode())
    buffer.unlink(missing_ok=True)


def last_lines(file: Path) -> list[str]:
    """The last lines of `file`, without the lines for a supervisor."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _MOST_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip() and not line.startswith(FAILURE_MARK)][-_SHOWN:]
