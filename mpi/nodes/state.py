"""What is known of sets of virtual nodes: a folder in /run/harness-nodes for each.

It holds set.json, keys, and for each node what `mpi.nodes.init` needs. A node is alive while the process that is
recorded of it is (id and start time, so that a reused id is not taken for it).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi.errors import UserError
from mpi.names import remove_folder
from mpi.nodes.processes import start_time

STATE = Path("/run/harness-nodes")
SET = "set.json"
_MAKER = "maker"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")  # stricter than other names: it becomes part of paths of sockets


class NodesError(UserError):
    """Virtual nodes that cannot be made or used. One line: the thing and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """pid: the node's first process, seen from the host, with its start time (clock ticks). cores: host CPUs."""

    name: str
    address: str
    cores: tuple[int, ...]
    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Node:
        return cls(**{**values, "cores": tuple(values["cores"])})


def check_set_name(name: str) -> str:
    """`name`. Raises NodesError where it cannot name a set: it becomes a folder that root removes."""
    if not _NAME.fullmatch(name):
        raise NodesError(f"{name!r} cannot name a node set: use up to 31 small letters, digits and '-'")
    return name


def folder_of(name: str) -> Path:
    """The set's folder. Raises NodesError for what is no name of a set."""
    return STATE / check_set_name(name)


def names() -> list[str]:
    """The sets that have a folder, alive or not."""
    if not STATE.is_dir():
        return []
    return sorted(path.name for path in STATE.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))


def remove(name: str) -> None:
    """Removes a set's folder, and STATE with the last one; nothing else. Raises NodesError."""
    try:
        remove_folder(STATE, check_set_name(name))
    except OSError as error:
        raise NodesError(f"{error.filename or folder_of(name)}: cannot be removed ({error.strerror})") from None
    with contextlib.suppress(OSError):
        STATE.rmdir()


def claim(name: str) -> None:
    """Makes the set's folder for this process, with its word in it (see `being_made`) from the first moment on.
    Raises NodesError where another process was faster."""
    own = STATE / f".{check_set_name(name)}-{os.getpid()}"
    own.mkdir(parents=True, mode=0o755)
    (own / _MAKER).write_text(f"{os.getpid()} {start_time(os.getpid())}")
    try:
        own.rename(folder_of(name))
    except OSError:
        shutil.rmtree(own)
        raise NodesError(f"node set '{name}' is being made by another process: give another --name") from None


def being_made(name: str) -> int:
    """Id of the living process that is making the set; 0 where it is made, or nobody makes it any more."""
    folder = folder_of(name)
    pid, _, started = read(folder / _MAKER).partition(" ")
    if not started or (folder / SET).exists():
        return 0
    return int(pid) if start_time(int(pid)) == int(started) else 0


def recorded(name: str) -> Iterator[Node]:
    """Every node that was ever started for the set, the hub too, also if `up` did not get to its end."""
    for path in sorted(folder_of(name).glob("*.pid")):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            yield Node.from_dict(json.loads(read(path)))


def read(path: Path) -> str:
    """The file's text, empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
