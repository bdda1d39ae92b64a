"""Who trains when: the coordinator gives each engine its blocks over TCP, one block at a time.

Every rank of every contender holds one connection and waits in a plain read. Its engine does not rest meanwhile: on two
cores Horovod's two waiting ranks kept 0.2 to 0.7 of a core busy, since its background threads negotiate every
millisecond. So ranks that wait are stopped (SIGSTOP) and go on (SIGCONT) when their block comes.

Messages are lines of JSON. A rank first says ``{"token": ..., "contender": 0, "rank": 1, "pid": 4711, "gpu": null}``
(the UUID of its GPU, if it has one). The other side sends ``{"steps": 3}`` (train a block)
or ``{"steps": 0}`` (the duel is over); `Reply`'s fields answer each block.
Every wait has a limit on both sides; a side that is gone ends the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

RAISE = "raise --set timeout_s=SECONDS"


class DuelError(RuntimeError):
    """A contender is gone, or does not answer within the limit. contender: its number, where one is known."""

    def __init__(self, message: str, contender: int | None = None) -> None:
        super().__init__(message)
        self.contender = contender


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One rank's block. seconds: between its device-synchronized marks. waited_s, waited_cpu_s: since its block before,
    and the processor time that its process spent meanwhile."""

    seconds: float
    waited_s: float
    waited_cpu_s: float


class Coordinator:
    """Listens for the ranks of `contenders` (world sizes by number) and hands out blocks. A context manager."""

    def __init__(self, world_sizes: Sequence[int], *, host: str = "127.0.0.1") -> None:
        self.world_sizes = tuple(world_sizes)
        self.token = secrets.token_hex(16)
        self._server = socket.create_server((host, 0), backlog=sum(world_sizes))
        self.address = (host, self._server.getsockname()[1])
        self._ranks: dict[tuple[int, int], _Line] = {}
        self._pids: dict[tuple[int, int], int] = {}
        self._gpus: set[str] = set()

    @property
    def gpus(self) -> list[str]:
        """UUIDs of the GPUs that the ranks said they use."""
        return sorted(self._gpus)

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up on everybody, which ends them. Safe to call twice."""
        for contender in range(len(self.world_sizes)):
            self._signal(contender, signal.SIGCONT)
        for line in self._ranks.values():
            line.close()
        self._server.close()

    def wait_ready(self, limit_s: float, check: Callable[[], None]) -> None:
        """Returns when all ranks have connected. check: called twice a second, raises where a contender has ended.
        Raises DuelError after `limit_s` seconds, naming who is missing."""
        limit = time.monotonic() + limit_s
        self._server.settimeout(0.5)
        while len(self._ranks) < sum(self.world_sizes):
            check()
            if time.monotonic() > limit:
                raise DuelError(f"{self._missing()} not ready after {limit_s:g} s: {RAISE} if it needs longer")
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                continue
            line = _Line(connection)
            hello = line.read(10.0)
            if hello.get("token") == self.token:
                place = int(hello["contender"]), int(hello["rank"])
                self._ranks[place], self._pids[place] = line, int(hello["pid"])
                self._gpus |= {hello["gpu"]} if hello.get("gpu") else set()
                if all((place[0], rank) in self._ranks for rank in range(self.world_sizes[place[0]])):
                    self._signal(place[0], signal.SIGSTOP)
            else:
                line.close()

    def block(self, contender: int, steps: int, *, limit_s: float, check: Callable[[], None]) -> list[Reply]:
        """One block of `steps` optimizer steps on all ranks of `contender`: their replies in rank order. Its ranks are
        stopped before and after it."""
        ranks = range(self.world_sizes[contender])
        self._signal(contender, signal.SIGCONT)
        try:
            replies = self._replies(contender, steps, limit_s, check)
        except DuelError as error:
            if error.contender is None:
                error.contender = contender
            raise
        self._signal(contender, signal.SIGSTOP)
        return [replies[rank] for rank in ranks]

    def _replies(self, contender: int, steps: int, limit_s: float, check: Callable[[], None]) -> dict[int, Reply]:
        ranks = range(self.world_sizes[contender])
        for rank in ranks:
            self._ranks[contender, rank].write({"steps": steps})
        replies: dict[int, Reply] = {}
        limit = time.monotonic() + limit_s
        with selectors.DefaultSelector() as waiting:
            for rank in ranks:
                waiting.register(self._ranks[contender, rank].socket, selectors.EVENT_READ, rank)
            while len(replies) < len(ranks):
                for key, _ in waiting.select(timeout=0.5):
                    replies[key.data] = Reply(**self._ranks[contender, key.data].read(10.0))
                    waiting.unregister(key.fileobj)
                check()
                if time.monotonic() > limit:
                    raise DuelError(
                        f"contender {contender}: no end of a block of {steps} steps after {limit_s:g} s: {RAISE} or "
                        "take fewer --steps"
                    )
        return replies

    def finish(self) -> None:
        """Tells every rank that the duel is over."""
        for contender in range(len(self.world_sizes)):
            self._signal(contender, signal.SIGCONT)
        for line in self._ranks.values():
            line.write({"steps": 0})

    def _signal(self, contender: int, number: int) -> None:
        """Stops the ranks of `contender`, or lets them go on; one that is gone is noticed where its answer is read."""
        for (owner, _), pid in self._pids.items():
            if owner == contender and pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _missing(self) -> str:
        wanted = {(number, rank) for number, size in enumerate(self.world_sizes) for rank in range(size)}
        return ", ".join(f"contender {number} rank {rank}" for number, rank in sorted(wanted - self._ranks.keys()))


class Seat:
    """A rank's side of the conversation."""

    def __init__(
        self,
        address: tuple[str, int],
        token: str,
        *,
        contender: int,
        rank: int,
        limit_s: float,
        gpu: str | None = None,
    ) -> None:
        self._limit_s = limit_s
        try:
            self._line = _Line(socket.create_connection(address, timeout=limit_s))
        except OSError as error:  # a duel that failed elsewhere: never the reason why it did
            raise DuelError(f"nobody coordinates any more ({error.strerror or error})") from None
        hello = {"token": token, "contender": contender, "rank": rank, "pid": os.getpid(), "gpu": gpu}
        self._line.write(hello)

    def next_block(self) -> int:
        """Steps of the next block, 0 when the duel is over. Raises DuelError where nobody coordinates any more."""
        return int(self._line.read(self._limit_s)["steps"])

    def answer(self, reply: Reply) -> None:
        """Reports a block."""
        self._line.write(asdict(reply))

    def close(self) -> None:
        """Hangs up."""
        self._line.close()


class _Line:
    """Lines of JSON over one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def write(self, message: dict[str, Any]) -> None:
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise DuelError(f"the other side is gone ({error.strerror or error})") from None

    def read(self, limit_s: float) -> dict[str, Any]:
        """The next message. Raises DuelError after `limit_s` seconds or where the other side has hung up."""
        self.socket.settimeout(limit_s)
        while b"\n" not in self._rest:
            try:
                got = self.socket.recv(65536)
            except TimeoutError:
                raise DuelError(f"no word from the other side within {limit_s:.0f} s") from None
            except OSError as error:
                raise DuelError(f"the other side is gone ({error.strerror or error})") from None
            if not got:
                raise DuelError("the other side has hung up")
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        self.socket.close()
