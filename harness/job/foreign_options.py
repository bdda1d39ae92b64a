"""Options of deepspeed, horovodrun, mpirun, torchrun and srun that people type here, and what does the same."""

from __future__ import annotations

import click

_SLOTS = "workers a host are --slots N"
_NODES = "the number of hosts is --nodes N"
_CHOICE = (
    "the hosts are the first --nodes of the --hostfile, so write one with those you want; devices are chosen by "
    "CUDA_VISIBLE_DEVICES"
)
_RENDEZVOUS = "the first host's address and a free port are found at the start: leave it out"
_LAUNCHER = "arguments for the launcher stand at the end, after --"
_MEANT = {
    **dict.fromkeys(("--include", "--exclude", "-i", "-e", "--nodelist", "-w"), _CHOICE),
    **dict.fromkeys(("--num_gpus", "--num-gpus", "--gpus", "--gpus-per-node", "--ntasks-per-node"), _SLOTS),
    **dict.fromkeys(("--nproc-per-node", "--nproc_per_node", "--ppn", "-N"), _SLOTS),
    **dict.fromkeys(("--np", "-n", "--num-proc", "--ntasks", "--world-size"), f"{_SLOTS}, times --nodes N hosts"),
    **dict.fromkeys(("--num_nodes", "--num-nodes", "--nnodes"), _NODES),
    **dict.fromkeys(("-H", "--host", "--hosts", "--machinefile", "-f"), "hosts stand in a file: --hostfile FILE"),
    **dict.fromkeys(("--master_addr", "--master-addr", "--master_port", "--master-port"), _RENDEZVOUS),
    **dict.fromkeys(("--launcher_args", "--launcher-args", "--mpi-args", "--mca", "-x", "--export"), _LAUNCHER),
    **dict.fromkeys(("-p", "--ssh-port", "--ssh_port"), "the port stands in ~/.ssh/config: Host NAME, Port N"),
}


# Former names of options, and what they are called in every command.
_RENAMED = {
    **dict.fromkeys(("--try-s", "--limit-s", "--time", "--timeout"), "--time-limit"),
    **dict.fromkeys(("--name", "--out"), "--study"),
    "--budget-s": "--budget",
}
# What `harness run` calls otherwise than a command that trains many jobs does.
_BEHIND = "write it behind the engine's name: --backends"
_OF_MANY = {
    "--min-np": f"{_BEHIND} horovod:min_np=N",
    "--max-np": f"{_BEHIND} horovod:max_np=N",
    "--autotune": f"{_BEHIND} horovod:tune_steps=N",
    "--resume": "only `harness run` goes on from a checkpoint: leave it out, what is finished is kept",
    "--backend": "engines are --backends LIST",
    "--slots": "numbers of workers are --workers LIST",
    "--nodes": "numbers of workers are --workers LIST",
    "--hostfile": "this command uses this machine alone: leave it out",
    "--run-name": "runs are named after what they train; the folder of all is --study NAME",
    "--zero-stage": f"{_BEHIND} deepspeed:zero_stage=2,horovod",
}


def explain(error: click.ClickException) -> click.ClickException:
    """The error of an option that a job's command does not have, with what does the same; any other as it is."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return error
    known = {option for parameter in error.ctx.command.params for option in parameter.opts}
    if _RENAMED.get(error.option_name) in known:
        return click.UsageError(
            f"No such option: {error.option_name}: it is now {_RENAMED[error.option_name]}", error.ctx
        )
    if error.option_name in _OF_MANY and "--backends" in known:
        return click.UsageError(f"No such option: {error.option_name}: {_OF_MANY[error.option_name]}", error.ctx)
    if error.option_name in _MEANT and known & {"--slots", "--backends"}:
        meant = _MEANT[error.option_name]
        if "--slots" not in known and _SLOTS in meant:
            meant = _OF_MANY["--slots"]
        return click.UsageError(f"No such option: {error.option_name}: {meant}", error.ctx)
    return error
