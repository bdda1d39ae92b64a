"""Joins a torch.distributed process group under any launcher, with every wait limited.

torchrun and the deepspeed launcher say where rank 0 is (MASTER_ADDR, MASTER_PORT). Under mpirun, rank 0 opens the
store itself and tells the others, through MPI, every address it has; each takes the first that answers, so that no
interface name is ever assumed. Under srun, rank 0's host is the first of the step's node list.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from backends.base import BackendError
from backends.process.rank import ProcessFacts

_PROBE_S = 3.0  # for one candidate address of rank 0 to accept a connection
_JOIN_LIMIT_S = 120.0  # for all ranks to appear, where the caller allows longer waits for collectives


def choose_device(device: str, local_rank: int) -> torch.device:
    """The device of this rank (``auto`` = CUDA where there is any), made current. Raises BackendError."""
    if device not in ("auto", "cpu", "cuda"):
        raise BackendError(f"unknown device '{device}': choose auto, cpu or cuda")
    if local_rank < 0:
        raise BackendError("which GPU is this rank's is not known: set LOCAL_RANK and LOCAL_WORLD_SIZE on every rank")
    count = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and count == 0:
        raise BackendError(
            "device 'cuda' was asked for but torch finds no GPU here: use --device cpu or a CUDA build of torch"
        )
    if count == 0:
        return torch.device("cpu")
    # A launcher that shows each rank its own GPU only (srun --gpus-per-task=1) leaves one device, number 0.
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible_alone = count == 1 and shown != "" and "," not in shown
    if local_rank >= count and not visible_alone:
        raise BackendError(
            f"local rank {local_rank} has no GPU: this node shows {count}; use at most {count} slots a node"
        )
    chosen = torch.device("cuda", 0 if visible_alone else local_rank)
    torch.cuda.set_device(chosen)
    return chosen


def join(facts: ProcessFacts, device: torch.device, timeout_s: float) -> str:
    """Makes the default process group and returns its backend (``gloo``, or ``cpu:gloo,cuda:nccl``).

    Raises BackendError where rank 0 cannot be reached within the limit.
    """
    kind = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if dist.is_initialized():
        if dist.get_world_size() != facts.world_size:
            raise BackendError(
                f"a process group of {dist.get_world_size()} ranks exists, the launcher started {facts.world_size}"
            )
        return kind
    limit = timedelta(seconds=timeout_s)
    join_s = min(timeout_s, _JOIN_LIMIT_S)
    try:
        if facts.world_size == 1:
            store: dist.Store = dist.HashStore()
        else:
            store = _store(facts, timedelta(seconds=join_s))
        # device_id binds the communicator to this GPU now, so that the first collective is not the one that sets it up.
        # A lone rank has no peer: later groups would split a communicator that was never made.
        bound: dict[str, Any] = {"device_id": device} if device.type == "cuda" and facts.world_size > 1 else {}
        dist.init_process_group(kind, store=store, rank=facts.rank, world_size=facts.world_size, timeout=limit, **bound)
    except BackendError:
        raise
    except (RuntimeError, ValueError, OSError) as error:  # DistStoreError and friends are RuntimeErrors
        reason = str(error).splitlines()[0][:200]
        raise BackendError(
            f"rank {facts.rank} of {facts.world_size} could not join the others within {join_s:g} s "
            f"({reason}): are all ranks alive, and is rank 0's port reachable from {facts.hostname}?"
        ) from None
    return kind


_left: list[dist.ProcessGroup] = []


def leave() -> None:
    """Leaves all process groups. Safe to call twice.

    The groups' objects are kept until the process ends. Where Python drops the last reference to one (as DDP's reducer
    goes, when the frame that held the engine returns), gloo's destructor waits for its thread while it holds the
    interpreter's lock, and that thread, as it drops its last tensors, waits for the lock: the rank never ended.
    """
    if dist.is_initialized():
        _left.extend(dist.distributed_c10d._world.pg_map)
        dist.destroy_process_group()


def _store(facts: ProcessFacts, limit: timedelta) -> dist.Store:
    """The key-value store that the ranks meet at, and the interface gloo should use."""
    if _kept:
        _name_interface(meeting_point(facts)[0], facts)
        _kept_joins.append(len(_kept_joins))  # each group has keys of its own
        return dist.PrefixStore(f"join/{len(_kept_joins)}", _kept[0])
    if facts.master_addr and facts.master_port:
        address, port = facts.master_addr, facts.master_port
        _name_interface(address, facts)
        # torchrun's agent may already serve this port; the environment says so.
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return dist.TCPStore(address, port, facts.world_size, is_master=False, timeout=limit)
        return dist.TCPStore(
            address, port, facts.world_size, is_master=facts.rank == 0, timeout=limit, wait_for_workers=False
        )
    if facts.launcher == "mpirun":
        return _store_over_mpi(facts, limit)
    address, port = meeting_point(facts)
    _name_interface(address, facts)
    return dist.TCPStore(
        address, port, facts.world_size, is_master=facts.rank == 0, timeout=limit, wait_for_workers=False
    )


def meeting_point(facts: ProcessFacts) -> tuple[str, int]:
    """Where rank 0 listens, as the launcher says it, the same on every rank. Raises BackendError where it does not."""
    if facts.master_addr and facts.master_port:
        return facts.master_addr, facts.master_port
    if facts.launcher == "srun":
        return _slurm_master()
    raise BackendError(
        f"launcher '{facts.launcher}' does not say where rank 0 is: set MASTER_ADDR and MASTER_PORT on every rank, "
        "or use torchrun, deepspeed, mpirun or srun"
    )


_kept: list[dist.Store] = []
_kept_joins: list[int] = []


def keep_store(store: dist.Store) -> None:
    """The ranks have met at `store`: `join` takes it, rank 0's port is in use."""
    _kept[:] = [store]


def _store_over_mpi(facts: ProcessFacts, limit: timedelta) -> dist.Store:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        raise BackendError(
            "under mpirun the ranks find rank 0 through mpi4py, which is not installed: "
            "pip install mpi4py, or pass -x MASTER_ADDR=... -x MASTER_PORT=..."
        ) from None
    world = MPI.COMM_WORLD
    if world.Get_size() != facts.world_size:
        raise BackendError(
            f"mpi4py sees {world.Get_size()} ranks where mpirun started {facts.world_size}: another MPI built it; "
            "pip install --no-binary mpi4py mpi4py, or pass -x MASTER_ADDR and -x MASTER_PORT"
        )
    server = None
    offer: tuple[str, list[str], int] | None = None
    if facts.rank == 0:
        server = dist.TCPStore("0.0.0.0", 0, facts.world_size, is_master=True, timeout=limit, wait_for_workers=False)
        offer = (facts.hostname, own_addresses(), server.port)
    host, addresses, port = world.bcast(offer, root=0)
    if server is not None:
        reached = world.gather(None, root=0) or []
        remote = [address for address in reached if address not in (None, "127.0.0.1")]
        _name_interface(remote[0] if remote else "127.0.0.1", facts)
        return server
    same_host = facts.hostname == host
    candidates = ["127.0.0.1"] if same_host else [a for a in addresses if not a.startswith("127.")] + [host]
    chosen = next((address for address in candidates if _answers(address, port)), None)
    world.gather(chosen, root=0)
    if chosen is None:
        raise BackendError(
            f"rank {facts.rank} on {facts.hostname} reaches none of rank 0's addresses {candidates} on port {port}"
        )
    # Loopback would do for this rank's own store, but peers on other nodes must reach its gloo listener.
    _name_interface(
        chosen if not same_host or facts.local_size == facts.world_size else _first_remote(addresses), facts
    )
    return dist.TCPStore(chosen, port, facts.world_size, is_master=False, timeout=limit)


def _first_remote(addresses: Iterable[str]) -> str:
    return next((address for address in addresses if not address.startswith("127.")), "127.0.0.1")


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=_PROBE_S):
            return True
    except OSError:
        return False


def own_addresses() -> list[str]:
    """This host's IPv4 addresses, the one of the default route first."""
    import psutil

    found = [a.address for entries in psutil.net_if_addrs().values() for a in entries if a.family == socket.AF_INET]
    return sorted(found, key=lambda address: (address.startswith("127."), address != _route_to("192.0.2.1")))


def _route_to(address: str) -> str | None:
    """The local IPv4 address from which `address` is reached (no packet is sent)."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return probe.getsockname()[0]
    except OSError:
        return None


def _name_interface(master: str, facts: ProcessFacts) -> None:
    """Tells gloo which interface leads to `master`, unless the user did. By itself gloo takes the one that the
    hostname resolves to, which is loopback on many machines."""
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    if facts.local_size == facts.world_size:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        return
    import psutil

    try:
        resolved = socket.gethostbyname(master)
    except OSError:
        return
    local = _route_to(resolved)
    for interface, entries in psutil.net_if_addrs().items():
        if local and not local.startswith("127.") and any(entry.address == local for entry in entries):
            os.environ["GLOO_SOCKET_IFNAME"] = interface
            return


def _slurm_master() -> tuple[str, int]:
    """First host of the step and a port made from its ids, the same on every rank."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "")
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=10, check=True
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        listed = [re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes.split(",")[0])] if nodes else []
    if not listed:
        raise BackendError("srun set no node list: set MASTER_ADDR and MASTER_PORT on every rank")
    ids = int(os.environ.get("SLURM_JOB_ID", "0")) * 31 + int(os.environ.get("SLURM_STEP_ID", "0") or 0)
    return listed[0], 20000 + ids % 20000
