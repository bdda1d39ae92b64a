"""``torchrun``: itself for this machine, one command a node over ssh for several (torchrun starts nothing remotely)."""

from __future__ import annotations

from mpi.launchers.base import Launch, Plan, ssh


def command(plan: Plan) -> Launch:
    """Static rendezvous on the first host. `supervise` ends the other nodes' commands when one fails."""
    commands = []
    for node_rank, host in enumerate(plan.hosts):
        argv = (
            plan.program("torchrun"),
            *("--nnodes", str(len(plan.hosts)), "--node-rank", str(node_rank), "--nproc-per-node", str(host.slots)),
            *("--master-addr", plan.network.address, "--master-port", str(plan.master_port)),
            *plan.extra,
            *_script(plan),
        )
        remote = host.name in plan.network.remote
        commands.append(ssh(host.name, argv, cwd=plan.cwd, env=plan.env) if remote else argv)
    return Launch(launcher="torchrun", argv=commands[0], others=tuple(commands[1:]), env=dict(plan.env))


def _script(plan: Plan) -> tuple[str, ...]:
    """torchrun starts scripts with its own interpreter, which is `plan.python`'s."""
    if len(plan.worker) > 1 and not plan.worker[1].startswith("-"):
        return plan.worker[1:]
    if plan.worker[1:2] == ("-m",):
        return ("--module", *plan.worker[2:])
    return ("--no-python", *plan.worker)
