"""Sets of virtual nodes: made, found again and taken down. See `mpi.nodes.nodeset` for what a set can do."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from mpi.nodes import init, link
from mpi.nodes.identity import PATH, mounts, program, write_files
from mpi.nodes.nodeset import INTERFACE, Cluster, find, kill, save
from mpi.nodes.processes import start_time
from mpi.nodes.state import (
    Node,
    NodesError,
    being_made,
    check_set_name,
    claim,
    folder_of,
    names,
    read,
    recorded,
    remove,
)

__all__ = ["INTERFACE", "MAX_NODES", "Cluster", "Node", "NodesError", "down", "load", "names", "up"]

MAX_NODES = 250
_READY_S = 30.0


# -- making, finding, ending ----------------------------------------------------------------------------------------
def up(
    name: str = "default",
    count: int = 2,
    *,
    rate: str = "",
    cores_per_node: int = 0,
    tied: bool = False,
) -> Cluster:
    """Makes a set of `count` nodes a, b, c ... and returns it when every sshd answers.

    rate: of each link, each way. cores_per_node: CPUs a node may use, in turn over this machine's; 0 = all of them.
    tied: the set ends with this process, however that ends (for tests). Raises NodesError; then nothing is left.
    """
    _check(name, count, cores_per_node)
    if rate:
        link.bytes_per_second(rate)
    _take_name(name)
    folder = folder_of(name)
    started: list[Node] = []
    try:
        names = tuple(_names(count))
        addresses = [f"10.77.{index // 200}.{index % 200 + 1}" for index in range(count)]
        write_files(folder, names, addresses)
        owner = _owner_pipe() if tied else None
        hub = _start(folder, "hub", "", _all_cores(), [], sshd="", owner=owner)
        started.append(hub)
        link.make_bridge(hub.pid)
        cores = _deal_cores(count, cores_per_node)
        for node_name, address, own in zip(names, addresses, cores, strict=True):
            started.append(
                _start(folder, node_name, address, own, mounts(folder, node_name), sshd=program("sshd"), owner=owner)
            )
        nodes = tuple(started[1:])
        for index, node in enumerate(nodes):
            link.connect(hub.pid, f"p{index}", node.pid, INTERFACE, f"{node.address}/16", rate)
        for one in (hub, *nodes):
            (folder / f"{one.name}.go").touch()
        _wait_state(folder, nodes, "up")
        shared = cores_per_node == 0 or count * cores_per_node > len(_all_cores())
        cluster = Cluster(name=name, nodes=nodes, hub=hub, rate=rate, shared_cores=shared and count > 1)
        save(cluster)
    except BaseException:
        kill(started)
        remove(name)
        raise
    return cluster


def _take_name(name: str) -> None:
    """Claims the name of a new set; what a crash has left under it is taken away. Raises NodesError if it is used."""
    previous = find(name)
    if previous is not None and previous.hub.alive:
        raise NodesError(f"node set '{name}' is up: harness cluster nodes down --name {name}, or give another --name")
    _sweep()
    if maker := being_made(name):
        raise NodesError(f"node set '{name}' is being made by process {maker}: give another --name, or end that one")
    if folder_of(name).exists():
        down(name)
    claim(name)


def load(name: str = "default") -> Cluster:
    """The set called `name`. Raises NodesError where there is none, or it is only the rest of a crash."""
    cluster = find(name)
    if cluster is None:
        known = ", ".join(names()) or "none"
        raise NodesError(f"no node set '{name}' (there are: {known}): harness cluster nodes up 2 --name {name}")
    if not cluster.hub.alive:
        raise NodesError(f"node set '{name}' has died: harness cluster nodes down --name {name}, then up again")
    return cluster


def down(name: str = "default") -> int:
    """Ends a set, or what a crash has left of it, and returns how many nodes it had. Nothing to do is no error."""
    if not folder_of(name).exists():
        return 0
    _check_root()
    found = list(recorded(name))
    kill(found)
    remove(name)
    return max(0, len(found) - 1)


def _sweep() -> None:
    """Takes away what tied sets have left whose owner was killed: their nodes are gone, their folders are not."""
    for name in names():
        made = find(name)
        spec = read(folder_of(name) / "hub.json")
        if made is not None and not made.hub.alive and spec and json.loads(spec)["tied"]:
            down(name)


def _check(name: str, count: int, cores_per_node: int) -> None:
    check_set_name(name)
    if not 1 <= count <= MAX_NODES:
        raise NodesError(f"{count} nodes were asked for: use 1 to {MAX_NODES}")
    if cores_per_node > len(_all_cores()):
        raise NodesError(f"{cores_per_node} cores a node were asked for, this machine has {len(_all_cores())}")
    _check_root()
    for needed, package in _PROGRAMS.items():
        if shutil.which(needed, path=PATH) is None:
            raise NodesError(f"virtual nodes need '{needed}': apt install {package}")


def _check_root() -> None:
    if os.geteuid() != 0:
        raise NodesError("virtual nodes need root (they are network namespaces): run it with sudo")


_PROGRAMS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nsenter": "util-linux",
    "taskset": "util-linux",
}


# -- parts ------------------------------------------------------------------------------------------------------------
def _names(count: int) -> Iterator[str]:
    letters = string.ascii_lowercase
    for index in range(count):
        yield letters[index] if index < 26 else letters[index // 26 - 1] + letters[index % 26]


def _all_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _deal_cores(count: int, each: int) -> list[list[int]]:
    cores = _all_cores()
    if not each:
        return [cores] * count
    return [sorted({cores[(node * each + k) % len(cores)] for k in range(each)}) for node in range(count)]


def _owner_pipe() -> int:
    """Read end of a pipe whose write end this process keeps open, inherited by nobody, until it ends."""
    read, write = os.pipe()
    os.set_inheritable(write, False)
    _owned.append(write)
    return read


_owned: list[int] = []


def _start(
    folder: Path,
    name: str,
    address: str,
    cores: Sequence[int],
    own_files: Sequence[tuple[str, str]],
    *,
    sshd: str,
    owner: int | None,
) -> Node:
    spec = {
        "name": name,
        "folder": str(folder),
        "cores": list(cores),
        "mounts": list(own_files),
        "empty": [str(Path(pwd.getpwuid(0).pw_dir) / ".ssh")] if sshd else [],
        "sshd": sshd,
        "sshd_config": f"{folder}/{name}.sshd_config",
        "tied": owner is not None,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(spec))
    done = subprocess.run(
        [sys.executable, "-I", "-S", init.__file__, str(path)],
        stdin=subprocess.DEVNULL if owner is None else owner,
        stdout=subprocess.PIPE,
        stderr=(log := (folder / f"{name}.log").open("wb")),
        env={"PATH": PATH, "LANG": "C.UTF-8"},
        timeout=_READY_S,
        start_new_session=True,
    )
    log.close()
    if done.returncode:
        raise NodesError(f"node '{name}' did not start: {_last_line(folder / f'{name}.log')}")
    pid = int(done.stdout)
    node = Node(name=name, address=address, cores=tuple(cores), pid=pid, started=start_time(pid))
    (folder / f"{name}.pid").write_text(json.dumps(asdict(node)))
    _wait_state(folder, [node], "ready")
    return node


def _wait_state(folder: Path, nodes: Sequence[Node], wanted: str) -> None:
    deadline = time.monotonic() + _READY_S
    for node in nodes:
        while (state := read(folder / f"{node.name}.state")) != wanted:
            if state.startswith("failed") or not node.alive:
                raise NodesError(
                    f"node '{node.name}' did not start: {state[7:] or _last_line(folder / f'{node.name}.log')}"
                )
            if time.monotonic() > deadline:
                raise NodesError(
                    f"node '{node.name}' was not {wanted} within {_READY_S:g} s: see {folder}/{node.name}.log"
                )
            time.sleep(0.005)


def _last_line(path: Path) -> str:
    return (read(path).strip().splitlines() or ["no message"])[-1]
