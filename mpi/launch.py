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

from mpi.hostfile import Host
from mpi.launchers import deepspeed, horovodrun, local, mpirun, srun, torchrun
from mpi.launchers.base import JOB_TAG, Launch, LaunchError, Plan
from mpi.network import Network

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
# ... but for those that a launcher made for one rank or one node.
_NOT_CARRIED = (
    *("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_", "HOROVOD_CROSS_", "HOROVOD_HOSTNAME"),
    *("HOROVOD_GLOO_RENDEZVOUS", "TORCHELASTIC_", "DS_ENV_FILE"),
)
# What tells a process that it already is a rank. The launching process must not hand it down.
_RANK_VARIABLES = (
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE LOCAL_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT CROSS_RANK CROSS_SIZE "
    "HOROVOD_RANK HOROVOD_SIZE HOROVOD_LOCAL_RANK HOROVOD_LOCAL_SIZE"
)
RANK_VARIABLES = frozenset(_RANK_VARIABLES.split())


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
    """The variables of `environ` that go to every node."""
    return {
        key: value
        for key, value in environ.items()
        if key.startswith(CARRIED) and not key.startswith(_NOT_CARRIED) and "\n" not in value and "\0" not in value
    }


def command(
    launcher: str,
    worker_argv: Sequence[str],
    hosts: Sequence[Host],
    *,
    scratch: Path,
    network: Network | None = None,
    master_port: int = 29500,
    env: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    threads: int = 1,
    extra: Sequence[str] = (),
    start_timeout: int = 60,
    operation_timeout: int = 60,
    tag: str = "",
    root: bool | None = None,
    elastic: tuple[int, int] | None = None,
    watched: str | Path = "",
) -> Launch:
    """How `launcher` starts `worker_argv` (interpreter first) on every slot of `hosts`. Nothing is run or written.

    env: variables that every worker must see; they win over those of `environ` (default: this process's), of which
    `carried` ones go along. threads: OMP_NUM_THREADS of a worker. extra: arguments for the launcher itself. tag: the
    job's name in the process environment (default: a new one). operation_timeout: seconds that a lost peer may hold up
    a Horovod/gloo operation. elastic, watched: see `Plan`. Raises LaunchError where this launcher cannot start it.
    """
    if launcher not in LAUNCHERS:
        raise LaunchError(f"unknown launcher '{launcher}': choose one of {', '.join(LAUNCHERS)}")
    if not hosts or not worker_argv:
        raise LaunchError("nothing to launch: give at least one host and the worker's command")
    environ = os.environ if environ is None else environ
    network = Network() if network is None else network
    tag = tag or new_tag()
    worker_env = carried(environ)
    worker_env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if not network.is_local:
        # Ranks must not listen on the name's address in /etc/hosts, which on Debian is 127.0.1.1.
        worker_env.setdefault("GLOO_SOCKET_IFNAME", network.interface)
        worker_env.setdefault("NCCL_SOCKET_IFNAME", network.interface)
    worker_env |= {**(env or {}), JOB_TAG: tag, "PYTHONUNBUFFERED": "1"}
    plan = Plan(
        worker=tuple(worker_argv),
        hosts=tuple(hosts),
        env=worker_env,
        network=network,
        master_port=master_port,
        cwd=str(Path(cwd or ".").absolute()),
        scratch=scratch,
        root=os.geteuid() == 0 if root is None else root,
        extra=tuple(extra),
        device_ids=_device_ids(environ.get("CUDA_VISIBLE_DEVICES", "")),
        start_timeout=start_timeout,
        operation_timeout=operation_timeout,
        elastic=elastic,
        watched=str(Path(watched).absolute()) if watched else "",
        programs=programs(worker_argv[0]),
    )
    launch = LAUNCHERS[launcher](plan)
    return replace(
        launch, env={**worker_env, **launch.env}, cwd=plan.cwd, hosts=plan.hosts, remote=network.remote, tag=tag
    )


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


def render(launch: Launch) -> str:
    """The launch as shell text that a person can read, copy and run: files, then environment, then the command(s)."""
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
    commands = [shlex.join(argv) for argv in launch.commands]
    lines += [text + (" &" if index < len(commands) - 1 else "") for index, text in enumerate(commands)]
    return "\n".join(lines + (["wait"] if len(commands) > 1 else []))


def _device_ids(visible: str) -> tuple[int, ...]:
    """CUDA_VISIBLE_DEVICES as numbers; empty where it is unset or names devices by UUID."""
    ids = visible.split(",") if visible else []
    return tuple(int(item) for item in ids) if all(item.strip().isdigit() for item in ids) else ()
