"""``srun`` inside a Slurm allocation: tasks by node and count, the whole environment carried."""

from __future__ import annotations

from mpi import hostfile
from mpi.launchers.base import Launch, Plan


def command(plan: Plan) -> Launch:
    """One task a slot."""
    slots = plan.even_slots("srun")
    nodelist = () if plan.is_local else ("--nodelist", hostfile.as_names(plan.hosts))
    argv = (
        plan.program("srun"),
        *("--nodes", str(len(plan.hosts)), "--ntasks", str(plan.world_size), "--ntasks-per-node", str(slots)),
        *nodelist,
        *("--export=ALL", "--kill-on-bad-exit=1", "--cpu-bind=none", "--unbuffered"),
        *plan.extra,
        *plan.worker,
    )
    return Launch(launcher="srun", argv=argv, env={**plan.env, **rendezvous(plan)}, gives_all=True)


def rendezvous(plan: Plan) -> dict[str, str]:
    """Where torch.distributed's rank 0 listens."""
    return {"MASTER_ADDR": plan.network.address, "MASTER_PORT": str(plan.master_port)}
