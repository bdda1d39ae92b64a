"""``deepspeed``: its pdsh, openmpi, mpich and slurm launchers (deepspeed/launcher/, 0.19).

What its source makes necessary:

- ``--no_local_rank``: else every worker gets an argument ``--local_rank=N``.
- ``--master_addr`` and ``--no_ssh_check``: else it runs ``ssh HOST hostname -I`` without any time limit.
- pdsh forwards only variables that start with PYTHON, MLFLOW, MV2, UCX and the accelerator's (NCCL): the rest goes
  through the file that DS_ENV_FILE names, whose values are put between double quotes where they hold more than
  ``[\\w@%+=:,./-]``, but not escaped: escaped here.
- pdsh's remote shell sees the worker's arguments: unquoted, or between double quotes where they hold a space. So they
  are quoted here such that exactly the argument arrives. pdsh itself replaces ``%h %u %n``, which is doubled.
- Under openmpi the quotes of such a value would become part of it: there the variables go as ``-x`` in
  ``--launcher_args``, which are split as a shell does. ``btl_tcp_if_include`` is named, else it is eth0.
- openmpi, mpich and slurm put the user's own ``.deepspeed_env`` onto a command line too, where every user of the
  machine can read it: DS_ENV_FILE names one that is not there.
- openmpi and mpich use the whole hostfile and refuse ``--num_nodes``: they get a hostfile of just the job's hosts.
- On CPU the device count is the number of NUMA nodes: slots are always written, also for this machine alone.
"""

from __future__ import annotations

import os
import re
import shlex

from mpi import hostfile
from mpi.launchers import mpirun, srun
from mpi.launchers.base import SSH_OPTIONS, Launch, LaunchError, Plan, is_plain, require_plain_cwd

_FORWARDED = ("PYTHON", "MLFLOW", "MV2", "UCX", "NCCL")
_PDSH_FORMAT = re.compile(r"%(?=[hun%])")


def pdsh(plan: Plan) -> Launch:
    """deepspeed's default: one ``deepspeed.launcher.launch`` a node, started through pdsh over ssh (here: directly)."""
    if plan.is_local:
        return _local(plan)
    require_plain_cwd(plan, "deepspeed")
    options = ["--hostfile", str(plan.scratch / "hostfile"), "--no_ssh_check"]
    options += ["--master_addr", plan.network.address, "--master_port", str(plan.master_port), "--no_local_rank"]
    if len(plan.hosts) == 1:
        options.append("--force_multi")  # one host, and not this one
    worker, no_python = _without_python(plan)
    return Launch(
        launcher="deepspeed",
        argv=(plan.program("deepspeed"), *options, *no_python, *plan.extra, *map(_quote_for_pdsh, worker)),
        env={"DS_ENV_FILE": str(plan.scratch / "deepspeed_env"), "PDSH_SSH_ARGS_APPEND": " ".join(SSH_OPTIONS)},
        files={
            plan.scratch / "hostfile": hostfile.as_deepspeed(plan.hosts),
            plan.scratch / "deepspeed_env": _env_file(plan),
        },
        # pdsh only notes that a node has failed, and waits for the others.
        failure_line=r"^pdsh@\S+: \S+: ssh exited with exit code [1-9]",
    )


def _local(plan: Plan) -> Launch:
    """All slots here: no ssh, no pdsh, the environment is inherited."""
    slots = plan.world_size
    options = ["--hostfile", str(plan.scratch / "hostfile"), "--no_ssh_check"]
    if plan.device_ids:  # DeepSpeed sets CUDA_VISIBLE_DEVICES itself, from 0, unless the ids are included by number
        chosen = plan.device_ids[:slots]
        if len(chosen) < slots:  # deepspeed would start as many workers as there are devices
            raise LaunchError(
                f"CUDA_VISIBLE_DEVICES names {len(chosen)} devices for {slots} workers: name {slots}, unset it, or use "
                f"--slots {len(chosen)}"
            )
        options += ["--include", f"localhost:{','.join(map(str, chosen))}"]
        slots = max(chosen) + 1
    options += ["--master_addr", plan.network.address, "--master_port", str(plan.master_port), "--no_local_rank"]
    worker, no_python = _without_python(plan)
    return Launch(
        launcher="deepspeed",
        argv=(plan.program("deepspeed"), *options, *no_python, *plan.extra, *worker),
        files={plan.scratch / "hostfile": f"localhost slots={slots}\n"},
    )


def openmpi(plan: Plan) -> Launch:
    """deepspeed over Open MPI's mpirun; ranks come from mpi4py (``deepspeed.init_distributed``) or OMPI_* variables."""
    arguments = [*mpirun.tuning(plan), *mpirun.exports({**plan.env, **mpirun.rendezvous(plan)})]
    return _through_mpi(plan, "openmpi", arguments, hostfile.as_openmpi(plan.hosts))


def mpich(plan: Plan) -> Launch:
    """deepspeed over MPICH's (Hydra's) mpirun."""
    plan.even_slots("deepspeed's mpich launcher")
    arguments = [word for key, value in sorted(plan.env.items()) for word in ("-genv", key, value)]
    arguments += ["-iface", plan.network.interface]
    return _through_mpi(plan, "mpich", arguments, hostfile.as_deepspeed(plan.hosts))


def slurm(plan: Plan) -> Launch:
    """deepspeed over srun, inside an allocation: srun carries the whole environment (``--export=ALL``)."""
    slots = plan.even_slots("deepspeed's slurm launcher")
    arguments = ["--nodelist", hostfile.as_names(plan.hosts), "--nodes", str(len(plan.hosts))]
    arguments += ["--ntasks-per-node", str(slots), "--kill-on-bad-exit=1"]
    return _through_mpi(plan, "slurm", arguments, hostfile.as_deepspeed(plan.hosts), env=srun.rendezvous(plan))


def _through_mpi(plan: Plan, name: str, arguments: list[str], hosts: str, env: dict[str, str] | None = None) -> Launch:
    options = ["--hostfile", str(plan.scratch / "hostfile"), "--no_ssh_check", "--force_multi", "--launcher", name]
    options += ["--launcher_args", shlex.join(arguments), "--no_local_rank"]
    options += ["--master_addr", plan.network.address, "--master_port", str(plan.master_port)]
    worker, no_python = _without_python(plan)
    return Launch(
        launcher=f"deepspeed-{name}",
        argv=(plan.program("deepspeed"), *options, *no_python, *plan.extra, *worker),
        env={**(env or {}), "DS_ENV_FILE": os.devnull},
        files={plan.scratch / "hostfile": hosts},
    )


def _without_python(plan: Plan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """deepspeed puts its own interpreter and ``-u`` before the script; it is the same one as `plan.python`."""
    if len(plan.worker) > 1 and not plan.worker[1].startswith("-"):
        return plan.worker[1:], ()
    if plan.worker[1:2] == ("-m",):
        return plan.worker[2:], ("--module",)
    return plan.worker, ("--no_python",)


def _quote_for_pdsh(argument: str) -> str:
    """What deepspeed must be given so that the worker receives exactly `argument` (see the module's text).

    deepspeed: with a space, ``"`` becomes ``\\"`` and all stands between double quotes; without one, nothing is done.
    """
    argument = _PDSH_FORMAT.sub("%%", argument)
    if " " in argument:
        return re.sub(r"([\\$`])", r"\\\1", argument)
    return shlex.quote(argument)


def _env_file(plan: Plan) -> str:
    """KEY=VALUE lines for DS_ENV_FILE. Variables that deepspeed forwards by itself come from this process's env too."""
    lines = []
    for key, value in sorted(plan.env.items()):
        if "\n" in value or value != value.strip():
            continue  # a line can hold neither; none of the variables that matter has them
        value = _PDSH_FORMAT.sub("%%", value)
        if not is_plain(value):
            value = re.sub(r'([\\$`"])', r"\\\1", value)
        lines.append(f"{key}={value}\n")
    return "".join(lines)
