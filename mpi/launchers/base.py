"""The words every launcher shares: what is to be started (`Plan`) and how it is started (`Launch`)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpi.errors import UserError
from mpi.hostfile import Host, total_slots
from mpi.network import Network
from mpi.ssh import options

JOB_TAG = "HARNESS_JOB_TAG"
"""The variable that every process of a job carries, on every node: by it a job's processes are found and ended."""

SSH_OPTIONS = options()


class LaunchError(UserError, ValueError):
    """A job that this launcher cannot start. One line: the thing and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job as a launcher sees it.

    worker: argv of one worker, the Python interpreter first. env: variables that every worker on every node must see.
    scratch: folder on the launching node for the launch's own files (written when the job starts). root: launched by
    uid 0. extra: arguments passed through to the launcher. device_ids: accelerators of this node to use, in order
    (from CUDA_VISIBLE_DEVICES), empty = the first ones. start_timeout: seconds until all workers must have started.
    operation_timeout: seconds that a lost peer may hold up a Horovod or gloo operation. elastic: (fewest, most) workers
    that an elastic job may have. watched: the hostfile that it follows while it runs.
    """

    worker: tuple[str, ...]
    hosts: tuple[Host, ...]
    env: Mapping[str, str]
    network: Network
    cwd: str
    scratch: Path
    master_port: int = 29500
    root: bool = False
    extra: Sequence[str] = ()
    device_ids: tuple[int, ...] = ()
    start_timeout: int = 60
    operation_timeout: int = 60
    elastic: tuple[int, int] | None = None
    watched: str = ""
    programs: Mapping[str, str] = field(default_factory=dict)

    @property
    def python(self) -> str:
        return self.worker[0]

    @property
    def world_size(self) -> int:
        return total_slots(self.hosts)

    @property
    def is_local(self) -> bool:
        """All workers on the launching node."""
        return self.network.is_local

    def program(self, name: str) -> str:
        """Path of a launcher program: the one beside the interpreter where there is one."""
        return self.programs.get(name, name)

    def even_slots(self, launcher: str) -> int:
        """Slots of every host, for launchers that can only say one number."""
        counts = {host.slots for host in self.hosts}
        if len(counts) > 1:
            listed = ", ".join(f"{host.name} {host.slots}" for host in self.hosts)
            raise LaunchError(
                f"{launcher} needs the same slots on every node ({listed}): use --slots {min(counts)} or torchrun"
            )
        return counts.pop()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to run on the launching node: `argv`, and `others` beside it where one command a node is needed.

    env: additions to the launching process's environment. files: path -> text, to be written before the start.
    hosts: where workers will run. remote: names among them that are other machines. failure_line: pattern of a line
    that means that the job has failed, from a launcher that then would wait for the others for ever. elastic: the
    job goes on without a node that is lost. A file that begins with ``#!`` is made executable. secrets: variables that
    no command line and no file of these may hold (`mpi.private`); workers get them by the guards. gives_all: the
    launcher hands the whole environment to the workers, and shows it nowhere.
    """

    launcher: str
    argv: tuple[str, ...]
    others: tuple[tuple[str, ...], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)
    cwd: str = "."
    hosts: tuple[Host, ...] = ()
    remote: tuple[str, ...] = ()
    tag: str = ""
    elastic: bool = False
    failure_line: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    gives_all: bool = False

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        return (self.argv, *self.others)


_PLAIN = re.compile(r"[\w@%+=:,./-]*", re.ASCII)


def is_plain(text: str) -> bool:
    """True for text that means itself in every shell, quoted or not."""
    return bool(_PLAIN.fullmatch(text))


def require_plain_cwd(plan: Plan, launcher: str) -> None:
    """deepspeed and horovodrun write ``cd FOLDER`` unquoted into the remote shell's line."""
    if not plan.is_local and not is_plain(plan.cwd):
        raise LaunchError(
            f"the folder '{plan.cwd}' has characters that {launcher} cannot pass to another node: use one without "
            f"spaces, or --launcher torchrun or mpirun"
        )


def ssh(host: str, remote_argv: tuple[str, ...], *, cwd: str, env: Mapping[str, str]) -> tuple[str, ...]:
    """argv that runs `remote_argv` on `host` in `cwd` with `env` added, everything quoted for the remote shell."""
    words = ("env", *(f"{key}={value}" for key, value in sorted(env.items())), *remote_argv)
    return ("ssh", *SSH_OPTIONS, host, f"cd {shlex.quote(cwd)} && exec {shlex.join(words)}")


def write_files(launch: Launch) -> None:
    """Writes the launch's own files, for this user alone: they hold variables."""
    for path, text in launch.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700 if text.startswith("#!") else 0o600)
        with open(handle, "w") as file:
            file.write(text)


def remove_files(launch: Launch) -> None:
    """Removes the launch's own files, and their folder where nothing else is in it."""
    for path in launch.files:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in launch.files}:
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
