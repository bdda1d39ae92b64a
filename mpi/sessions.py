"""One ssh connection to each node with a probe at its end (`mpi.probe`), asked in parallel, every answer limited."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mpi import probe, ssh

_T = TypeVar("_T")
LOGIN_S = 8.0  # after which ssh gives up, where not told otherwise
_OVERTIME = 100  # reads after a deadline: what waits there is read, endless noise is not


class Session:
    """A node's probe. `host` None: this machine, without ssh. login_s: ssh gives up after so many seconds."""

    def __init__(self, host: str | None, python: str, *, login_s: float = LOGIN_S) -> None:
        self.host = host
        argv: tuple[str, ...] = (python, "-I", "-c", Path(probe.__file__).read_text())
        if host is not None:
            options = ssh.options(connect_s=login_s, alive_s=0, log_level="INFO")
            argv = ("ssh", *options, host, "exec " + shlex.join(argv))
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self._buffer = b""
        self._overtime = _OVERTIME
        self._asked = 0
        self.noise: list[str] = []

    def ready(self, timeout: float) -> str:
        """The empty string when the probe answers, else what ssh or Python said instead (or ``no answer``)."""
        deadline = time.monotonic() + timeout
        while (line := self._line(deadline)) is not None:
            if line == probe.READY:
                return ""
            self.noise.append(line)  # what a login script prints breaks launchers that read output
        return self._last_words(deadline)

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The probe's answer; ``{"error": ...}`` where it has none in time."""
        assert self._process.stdin is not None
        self._asked += 1
        self._overtime = _OVERTIME
        try:
            self._process.stdin.write(json.dumps(request | {"number": self._asked}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return {"error": "the connection was lost"}
        deadline = time.monotonic() + timeout
        while (line := self._line(deadline)) is not None:
            answer = json.loads(line)
            if answer.pop("number", None) == self._asked:  # others are late answers to what was given up
                return answer
        if time.monotonic() < deadline:
            return {"error": self._last_words(deadline)}
        return {"error": f"no answer within {timeout:g} s"}

    def close(self) -> None:
        """Ends the probe and its connection."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _line(self, deadline: float) -> str | None:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            rest = deadline - time.monotonic()
            if rest <= 0:  # what came in time is read, also where this process was stopped until after the deadline
                self._overtime -= 1
            if self._overtime < 0 or not select.select([handle], [], [], max(0.0, rest))[0]:
                return None
            data = os.read(handle, 65536)
            if not data:
                return None
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace").rstrip("\r")

    def _last_words(self, deadline: float) -> str:
        """What was written to standard error, if the process has ended."""
        try:
            self._process.wait(max(0.05, min(1.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            return "no answer"
        assert self._process.stderr is not None
        text = self._process.stderr.read().decode(errors="replace")
        return re.sub(r"\r", "", text).strip() or f"ended with exit code {self._process.returncode}"


def in_parallel(work: Callable[[int], _T], count: int, *, width: int = 64) -> list[_T]:
    """``[work(0), work(1), ...]``, at most `width` at a time."""
    if count == 0:
        return []
    with ThreadPoolExecutor(max_workers=min(width, count)) as pool:
        return list(pool.map(work, range(count)))


def measure_pairs(
    sessions: Sequence[Session],
    addresses: Sequence[Mapping[int, str]],
    ports: Sequence[int],
    *,
    seconds: float = 0.3,
    at_once: int = 8,
) -> list[dict[str, Any]]:
    """The links of the ring node i -> node i+1: ``from, to, round_trip_s, bytes_per_s`` or ``error``.

    addresses: for each node, how it calls the others (by index). Two nodes are one link. Links with a node in common
    are not measured at the same time.
    """
    count = len(sessions)
    links = [(i, (i + 1) % count) for i in range(count if count > 2 else count - 1)]
    found: dict[int, dict[str, Any]] = {}
    # Even links, odd links, and the one that closes an odd ring: within each no node appears twice.
    last = len(links) - 1 if len(links) % 2 and count > 2 else len(links)
    groups = [[n for n in range(last) if n % 2 == parity] for parity in (0, 1)] + [list(range(last, len(links)))]

    for group in groups:

        def one(position: int, group: list[int] = group) -> None:
            sender, receiver = links[group[position]]
            found[group[position]] = {
                "from": sender,
                "to": receiver,
                **measure_link(sessions[sender], sessions[receiver], addresses[sender][receiver], ports, seconds),
            }

        in_parallel(one, len(group), width=at_once)
    return [found[n] for n in range(len(links))]


def measure_link(
    sender: Session, receiver: Session, address: str, ports: Sequence[int], seconds: float
) -> dict[str, Any]:
    """``port, round_trip_s, bytes_per_s`` or ``error`` of one link. address: how the sender calls the receiver."""
    port = receiver.ask({"do": "listen", "ports": list(ports)}, 3).get("port", 0)
    if not port:
        return {"error": "no port could be opened", "port": 0}
    patience = seconds + 3.0
    with ThreadPoolExecutor(max_workers=1) as pool:
        counted = pool.submit(receiver.ask, {"do": "receive", "timeout": patience}, patience + 2)
        request = {"do": "send", "address": address, "port": port, "seconds": seconds, "timeout": 2.5}
        sent = sender.ask(request, patience + 1)
        got = counted.result()
    if "error" in sent:
        return {"error": sent["error"], "port": port}
    return {
        "port": port,
        "round_trip_s": sent["round_trip_s"],
        **{k: got[k] for k in ("bytes_per_s", "error") if k in got},
    }
