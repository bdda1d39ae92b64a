"""The launching side of `mpi.guard`: a guard here and one on every other node, and what they tell.

A guard's ssh connection is also the life-line of its node: when the node is cut off, ssh gives up after
ServerAliveInterval x ServerAliveCountMax seconds, long before most engines notice.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpi import guard, ssh
from mpi.launch import secrets_for
from mpi.launchers.base import Launch

READY_S = 15.0
BEAT_S = 2.0
SILENCE_S = 20.0  # after which a node takes itself for cut off
_ALIVE_S = 3  # a guard is its node's life-line: it notices a cut sooner than a launcher's own ssh


class Guard:
    """One guard process. `node`: host name, empty for this machine. `problem()`: one line if its node is lost.

    secrets: variables that it keeps for the workers there (`mpi.private`). others: of this machine's guard, those that
    it beats for as long as this process is there, stopped or not.
    """

    def __init__(
        self,
        node: str,
        tag: str,
        python: str,
        secrets: Mapping[str, str] | None = None,
        others: Sequence[Guard] = (),
    ) -> None:
        self.node = node
        self.version = ""
        self._said = ""
        self._errors = ""
        pipes = [other.input for other in others]
        role = ("listen", f"{SILENCE_S:g}") if node else ("beat", f"{BEAT_S:g}", *map(str, pipes))
        argv: tuple[str, ...] = (python, "-I", "-S", "-c", Path(guard.__file__).read_text(), tag, *role)
        if node:
            argv = ("ssh", *ssh.options(alive_s=_ALIVE_S), node, "exec " + shlex.join(argv))
        # Not with the job's tag in its environment: it must outlive what it ends.
        environ = {key: value for key, value in os.environ.items() if key != guard.VARIABLE}
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            pass_fds=pipes,
            start_new_session=True,  # a Ctrl-C or Ctrl-Z at the terminal is none for it
        )
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already: `problem` tells
            os.write(self._process.stdin.fileno(), json.dumps(dict(secrets or {})).encode() + b"\n")
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    @property
    def ready(self) -> bool:
        """It has said so. Reads what is there, never waits."""
        self._read()
        return self._said.startswith("ready ")

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def input(self) -> int:
        """The pipe to its standard input."""
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def problem(self) -> str:
        """One line saying why the node cannot take part (any more), or the empty string."""
        if not self.ended:
            return ""
        self._read()
        where = f"node {self.node}" if self.node else "this node"
        code = self._process.returncode
        last = next((line for line in reversed(self._errors.splitlines()) if line.strip()), "")
        if self._said.startswith("ready "):
            why = last or f"guard ended with code {code}"
            return f"{where}: lost the connection ({why}): check the machine and its network"
        if code in (126, 127):
            return f"{where}: {last or 'Python not found'}: the same Python path must exist on every node"
        if code == 255:
            return (
                f"{where}: {last or 'ssh failed'}: 'harness cluster doctor --hostfile FILE' tells what is missing there"
            )
        return f"{where}: guard ended with code {code} ({last or 'no message'}): run 'harness cluster doctor'"

    def close(self) -> None:
        """The job is over: lets the guard clean its node."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def wait(self, deadline: float) -> int | None:
        """Processes it had to end, or None where it could not be asked in time. `deadline`: time.monotonic()."""
        try:
            self._process.wait(max(0.05, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None
        finally:
            self._read()
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()
        for line in self._said.splitlines():
            if line.startswith("cleaned "):
                return int(line.split()[1])
        return None

    def _read(self) -> None:
        for pipe, name in ((self._process.stdout, "_said"), (self._process.stderr, "_errors")):
            if pipe is None or pipe.closed:
                continue
            try:
                while data := os.read(pipe.fileno(), 65536):
                    setattr(self, name, getattr(self, name) + data.decode(errors="replace"))
            except BlockingIOError:
                continue
        if not self.version and self._said.startswith("ready "):
            self.version = self._said.split()[2]


def start_guards(guards: list[Guard], launch: Launch, python: str) -> None:
    """Appends a guard for each of the launch's other nodes to `guards`, then this machine's. One by one, so that all
    that have begun are in the list whatever interrupts this."""
    for node in launch.remote:
        guards.append(Guard(node, launch.tag, python, secrets_for(node, launch)))
    guards.append(Guard("", launch.tag, python, secrets_for("", launch), others=list(guards)))
