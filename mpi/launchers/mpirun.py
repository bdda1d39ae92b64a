"""``mpirun`` of Open MPI 4 and 5.

Open MPI binds each process to a core and busy-waits by default: 2x slower for two workers on two cores
(shared/facts.md). So ``--bind-to none`` and ``mpi_yield_when_idle``. Interfaces are chosen by subnet, which also holds
where the nodes name them differently. Root must say that it means it. The keep-alive settings make mpirun notice a
node that was cut off within about 15 s instead of minutes.
"""

from __future__ import annotations

from collections.abc import Mapping

from mpi import hostfile
from mpi.launchers.base import SSH_OPTIONS, Launch, Plan


def command(plan: Plan) -> Launch:
    """Ranks by slot in the order of the hosts."""
    hosts = f"localhost:{plan.world_size}" if plan.is_local else hostfile.as_list(plan.hosts)
    return Launch(
        launcher="mpirun",
        argv=(
            plan.program("mpirun"),
            *("-np", str(plan.world_size), "-H", hosts),
            *tuning(plan),
            *exports({**_buffered(plan.env), **rendezvous(plan)}),
            *plan.extra,
            *plan.worker,
        ),
    )


def _buffered(env: Mapping[str, str]) -> dict[str, str]:
    """Without PYTHONUNBUFFERED: mpirun tags every write, so that unbuffered text arrives in shreds of a tag each."""
    return {key: value for key, value in env.items() if key != "PYTHONUNBUFFERED"}


def tuning(plan: Plan) -> list[str]:
    """Root, binding, waiting, interfaces, keep-alive; each line of output begins with ``[1,RANK]<stdout>:``."""
    root = ["--allow-run-as-root"] if plan.root else []
    return [*root, "--tag-output", *binding(), *parameters(mca(plan))]


def binding() -> list[str]:
    """Ranks fill the hosts in their order and may run on every core of theirs."""
    return ["--bind-to", "none", "--map-by", "slot"]


def mca(plan: Plan) -> dict[str, str]:
    """Open MPI's own parameters."""
    values = {"mpi_yield_when_idle": "1", "btl_tcp_if_include": plan.network.subnet}
    if not plan.is_local:
        values |= {
            "oob_tcp_if_include": plan.network.subnet,
            "oob_tcp_keepalive_time": "5",
            "oob_tcp_keepalive_intvl": "5",
            "oob_tcp_keepalive_probes": "2",
            "plm_rsh_args": " ".join(SSH_OPTIONS),
        }
    return values


def parameters(values: Mapping[str, str]) -> list[str]:
    """``--mca KEY VALUE`` for each."""
    return [word for key, value in values.items() for word in ("--mca", key, value)]


def exports(variables: Mapping[str, str]) -> list[str]:
    """``-x KEY=VALUE`` for every variable: Open MPI forwards only its own."""
    return [word for key, value in sorted(variables.items()) for word in ("-x", f"{key}={value}")]


def rendezvous(plan: Plan) -> dict[str, str]:
    """Where torch.distributed's rank 0 listens: MPI tells ranks, but no such address."""
    return {"MASTER_ADDR": plan.network.address, "MASTER_PORT": str(plan.master_port)}
