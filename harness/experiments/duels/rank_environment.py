"""The variables that an engine's own launcher gives to each rank on this machine, for ranks that are forked instead.

Sources: deepspeed/launcher/launch.py (0.19), horovod/runner/gloo_run.py (0.28), torch/distributed/run.py. A test
compares them with what the launchers really set.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
from collections.abc import Sequence

import mpi.launch

HOST = "127.0.0.1"
FORKED = ("local", "torchrun", "deepspeed", "horovodrun")  # launchers whose ranks may be forked
_PR_SET_PDEATHSIG = 1


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, all different: they are held until the last one is known."""
    with contextlib.ExitStack() as held:
        return [held.enter_context(socket.create_server((HOST, 0))).getsockname()[1] for _ in range(count)]


def environments(launcher: str, workers: int, *, port: int, limit_s: int = 60) -> list[dict[str, str]]:
    """The variables of each rank, in rank order.

    Args:
        launcher: one of FORKED.
        workers: ranks, all on this machine.
        port: of Horovod's rendezvous server, or where rank 0 will listen.
        limit_s: seconds that a lost peer may hold up a Horovod operation.
    """
    if launcher == "local":
        return [{}] * workers
    if launcher == "horovodrun":
        common = {
            "HOROVOD_HOSTNAME": "localhost",
            "HOROVOD_SIZE": str(workers),
            "HOROVOD_LOCAL_SIZE": str(workers),
            "HOROVOD_CROSS_RANK": "0",
            "HOROVOD_CROSS_SIZE": "1",
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": HOST,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(limit_s),
            "HOROVOD_GLOO_IFACE": "lo",
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }
        names = ("HOROVOD_RANK", "HOROVOD_LOCAL_RANK")
    else:
        common = {
            "MASTER_ADDR": HOST,
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(workers),
            "LOCAL_SIZE" if launcher == "deepspeed" else "LOCAL_WORLD_SIZE": str(workers),
        }
        names = ("RANK", "LOCAL_RANK")
    return [common | dict.fromkeys(names, str(rank)) for rank in range(workers)]


def become_rank(variables: dict[str, str]) -> None:
    """Gives this process a rank's variables, none of another rank's."""
    for name in mpi.launch.RANK_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(variables)


def die_with_parent() -> None:
    """This process is killed when the one that forked it ends, also while it is stopped."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that call
        os._exit(1)


def serve_rendezvous(sizes: Sequence[int]) -> list[int]:
    """Ports of Horovod's rendezvous servers, one for each job of `sizes` workers. They live in a process of their own,
    since they need threads, and end with this one."""
    if not sizes:
        return []
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            die_with_parent()
            os.close(reading)
            os.write(writing, json.dumps([_server(size) for size in sizes]).encode() + b"\n")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as answer:
        line = answer.readline()
    if not line:
        raise RuntimeError("Horovod's rendezvous server did not start")
    return json.loads(line)


_servers: list[object] = []


def _server(size: int) -> int:
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    port = int(server.start())
    server.init(get_host_assignments(parse_hosts(f"localhost:{size}"), size))
    _servers.append(server)
    return port
