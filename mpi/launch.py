"""From a job to the command that starts it: `command` is a pure function, `render` prints it for ``--dry-run``.

network = mpi.network.find([host.name for host in hosts])
launch = command("horovodrun", [sys.executable, "harness/run.py", "--job", "job.json"], hosts,
                 network=network, master_port=mpi.network.free_port(network.address), scratch=Path("/tmp/job"))
outcome = mpi.process.supervise(launch, log_path=Path("log.txt"), timeout=600)
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from mpi.hostfile import Host
from mpi.launchers import deepspeed, horovodrun, local, mpirun, srun, torchrun
from mpi.launchers.base import JOB_TAG, Launch, LaunchError, Plan
from mpi.network import Network
from mpi.private import MASK, named_with_value, secrets_in, without_secrets

LAUNCHERS: Mapping[str, Callable[[Plan], Launch]] = {
    "local": local.command,
    "deepspeed": deepspeed.pdsh,
    "deepspeed-openmpi": deepspeed.openmpi,
    "deepspeed-mpich": deepspeed.mpich,
    "deepspeed-slurm": deepspeed.slurm,
    "horovodrun": horovodrun.gloo,
    "horovodrun-mpi": horovodrun.mpi,
    "horovodrun-elastic": horovodrun.elastic,
    "mpirun": mpirun.command,
    "torchrun": torchrun.command,
    "srun": srun.command,
}
DEFAULT_LAUNCHER = {
    "single": "local",
    "ddp": "torchrun",
    "fsdp2": "torchrun",
    "deepspeed": "deepspeed",
    "horovod": "horovodrun",
}

# Variables of the launching process that decide what a worker does, carried to every node by prefix.
_CARRIED = (
    "HARNESS_ OMP_ MKL_ KMP_ GOMP_ NCCL_ GLOO_ HOROVOD_ DS_ DEEPSPEED_ TORCH CUDA_ UCX_ HF_ TRANSFORMERS_ TOKENIZERS_ "
    "PYTHON OMPI_MCA_ LD_LIBRARY_PATH LD_PRELOAD XDG_CACHE_HOME PATH"
)
CARRIED = tuple(_CARRIED.split())
# ... but for secrets (`mpi.private`), and for those that a launcher made for one rank or one node.
_NOT_CARRIED = (
    *("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_", "HOROVOD_CROSS_", "HOROVOD_HOSTNAME"),
    *("HOROVOD_GLOO_RENDEZVOUS", "TORCHELASTIC_", "DS_ENV_FILE"),
)
# What tells a process that it already is a rank. The launching process must not hand it down.
_RANK_VARIABLES = (
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE LOCAL_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT CROSS_RANK CROSS_SIZE "
    "GROUP_WORLD_SIZE HOROVOD_RANK HOROVOD_SIZE HOROVOD_LOCAL_RANK HOROVOD_LOCAL_SIZE "
    "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_LOCAL_SIZE "
    "MV2_COMM_WORLD_RANK MV2_COMM_WORLD_SIZE MV2_COMM_WORLD_LOCAL_RANK MV2_COMM_WORLD_LOCAL_SIZE "
    "PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS SLURM_PROCID SLURM_LOCALID"
)
RANK_VARIABLES = frozenset(_RANK_VARIABLES.split())
_MOST_SECRETS = 32768  # bytes: they go through a pipe at once

_REMEDIES = {
    "deepspeed": "pip install deepspeed",
    "horovodrun": "run 'make setup'",
    "mpirun": "apt install openmpi-bin",
    "pdsh": "apt install pdsh",
    "ssh": "apt install openssh-client",
}


def default_launcher(backend: str) -> str:
    """The launcher that an engine's own users would take; torchrun, which any process group of torch understands, for
    an engine that was added."""
    return DEFAULT_LAUNCHER.get(backend, "torchrun")


def new_tag() -> str:
    """A job's unique name: letters, digits and '-'."""
    return f"job-{os.getpid()}-{secrets.token_hex(6)}"


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that go to every node, on command lines where a launcher works so: no secrets."""
    return {
        key: value
        for key, value in without_secrets(environ).items()
        if key.startswith(CARRIED) and not key.startswith(_NOT_CARRIED) and "\n" not in value and "\0" not in value
    }


def secrets_for(node: str, launch: Launch) -> dict[str, str]:
    """The secrets that the guard of `node` keeps: of this machine (empty name) all, of others what `CARRIED` names."""
    return {key: value for key, value in launch.secrets.items() if not node or key.startswith(CARRIED)}


def environment_of(launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the launch's commands: `environ` without ranks' variables and secrets, which the launchers
    would copy onto command lines, and the launch's own."""
    kept = environ if launch.gives_all else without_secrets(environ)
    return {**{key: value for key, value in kept.items() if key not in RANK_VARIABLES}, **launch.env}


class Choices(TypedDict, total=False):
    """What of a `Plan` is passed on to the launcher as it is given here."""

    master_port: int
    extra: Sequence[str]
    start_timeout: int
    operation_timeout: int
    elastic: tuple[int, int] | None


def command(
    launcher: str,
    worker_argv: Sequence[str],
    hosts: Sequence[Host],
    *,
    scratch: Path,
    network: Network | None = None,
    env: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: str | Path = ".",
    threads: int = 1,
    tag: str = "",
    root: bool | None = None,
    watched: str | Path = "",
    **choices: Unpack[Choices],
) -> Launch:
    """How `launcher` starts `worker_argv` on every slot of `hosts`. Nothing is run or written.

    Args:
        launcher: a key of `LAUNCHERS`.
        worker_argv: one worker's command, the Python interpreter first.
        env: variables that every worker must see; they win over those of `environ` (default: this process's), of which
            `carried` ones go along. Secrets in either go by the guards.
        threads: OMP_NUM_THREADS of a worker.
        tag: the job's name in the process environment (default: a new one).
        choices: for the launcher; `Plan` explains them, as it does all the others.

    Raises:
        LaunchError: this launcher cannot start it.
    """
    environ = os.environ if environ is None else environ
    secrets_found = {**secrets_in(environ), **secrets_in(env or {})}
    _check(launcher, worker_argv, hosts, choices.get("extra", ()), secrets_found)
    network = Network() if network is None else network
    tag = tag or new_tag()
    plan = Plan(
        worker=tuple(worker_argv), hosts=tuple(hosts), network=network, scratch=scratch,
        env=_worker_environment(environ, env or {}, network, threads, tag),
        cwd=str(Path(cwd).absolute()),
        watched=str(Path(watched).absolute()) if watched else "",
        root=os.geteuid() == 0 if root is None else root,
        device_ids=_device_ids(environ.get("CUDA_VISIBLE_DEVICES", "")), programs=programs(worker_argv[0]), **choices,
    )  # fmt: skip
    launch = LAUNCHERS[launcher](plan)
    env = {**plan.env, **launch.env}
    return replace(
        launch, env=env, cwd=plan.cwd, hosts=plan.hosts, remote=network.remote, tag=tag, secrets=secrets_found
    )


def _check(
    launcher: str,
    worker_argv: Sequence[str],
    hosts: Sequence[Host],
    extra: Sequence[str],
    secrets_found: Mapping[str, str],
) -> None:
    """Raises LaunchError for what cannot be launched."""
    if launcher not in LAUNCHERS:
        raise LaunchError(f"unknown launcher '{launcher}': choose one of {', '.join(LAUNCHERS)}")
    if not hosts or not worker_argv:
        raise LaunchError("nothing to launch: give at least one host and the worker's command")
    if name := named_with_value(extra):
        raise LaunchError(
            f"the launcher's arguments hold the value of {name}, which every user of the machine could read: export "
            f"{name} and leave it out, the workers get it by a file that only you can read"
        )
    if sum(len(key) + len(value) for key, value in secrets_found.items()) > _MOST_SECRETS:
        raise LaunchError(f"the secrets {', '.join(sorted(secrets_found))} are longer than 32 KiB: unset the long ones")


def _worker_environment(
    environ: Mapping[str, str], env: Mapping[str, str], network: Network, threads: int, tag: str
) -> dict[str, str]:
    """The variables that every worker on every node sees, secrets apart."""
    found = carried(environ) | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if not network.is_local:
        # Ranks must not listen on the name's address in /etc/hosts, which on Debian is 127.0.1.1.
        found.setdefault("GLOO_SOCKET_IFNAME", network.interface)
        found.setdefault("NCCL_SOCKET_IFNAME", network.interface)
    return {**found, **without_secrets(env), JOB_TAG: tag, "PYTHONUNBUFFERED": "1"}


def programs(python: str) -> dict[str, str]:
    """The launchers that are installed beside the interpreter: only those start the same Python on every node."""
    folder = Path(python).parent
    return {name: str(folder / name) for name in ("deepspeed", "horovodrun", "torchrun") if (folder / name).is_file()}


def missing_program(launch: Launch) -> str:
    """One line if the launcher's program, or pdsh where deepspeed needs it, is not installed; else the empty string."""
    needed = [launch.argv[0]]
    if launch.remote:
        needed += ["ssh", "pdsh"] if launch.launcher == "deepspeed" else ["ssh"]
    for program in needed:
        if shutil.which(program) is None:
            remedy = _REMEDIES.get(Path(program).name, "install it or choose another --launcher")
            return f"launcher program '{program}' is not installed on {socket.gethostname()}: {remedy}"
    return ""


def unread(launch: Launch, home: Path | None = None) -> str:
    """One line naming the user's own ``.deepspeed_env``, which deepspeed alone would copy onto a command line and which
    is not read here; else the empty string."""
    if "DS_ENV_FILE" not in launch.env:
        return ""
    places = (home or Path.home(), Path(launch.cwd))
    found = [str(place / ".deepspeed_env") for place in places if (place / ".deepspeed_env").is_file()]
    if not found:
        return ""
    return f"{found[0]} is not read: export what workers need ({', '.join(CARRIED[:8])}... are carried to every node)"


def render(launch: Launch) -> str:
    """The launch as shell text that a person can read, copy and run: files, then environment, then the command(s).

    Secrets are named, not shown: the text is unset of them, because launchers put their environment on command lines.
    """
    lines = [f"# launcher {launch.launcher} on {', '.join(f'{host.name} ({host.slots})' for host in launch.hosts)}"]
    for path, text in launch.files.items():
        lines += [
            f"mkdir -p {shlex.quote(str(path.parent))}",
            f"cat > {shlex.quote(str(path))} <<'END'",
            *text.splitlines(),
            "END",
        ]
    lines.append(f"cd {shlex.quote(launch.cwd)}")
    lines += [f"export {key}={shlex.quote(value)}" for key, value in sorted(launch.env.items())]
    if launch.secrets and not launch.gives_all:
        names = sorted(launch.secrets)
        listed = ", ".join(f"{name}={MASK}" for name in names)
        lines.append(f"# on no command line; `harness` hands them to the workers by a file of mode 600: {listed}")
        lines.append(f"unset {' '.join(name for name in names if name.isidentifier())}")
    commands = [shlex.join(argv) for argv in launch.commands]
    lines += [text + (" &" if index < len(commands) - 1 else "") for index, text in enumerate(commands)]
    return "\n".join(lines + (["wait"] if len(commands) > 1 else []))


def _device_ids(visible: str) -> tuple[int, ...]:
    """CUDA_VISIBLE_DEVICES as numbers; empty where it is unset or names devices by UUID."""
    ids = visible.split(",") if visible else []
    return tuple(int(item) for item in ids) if all(item.strip().isdigit() for item in ids) else ()
