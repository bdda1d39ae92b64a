"""Runs a worker script under a real launcher on this machine, with a limit, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
_TAG = "PARALLEL_TEST_TAG"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a launch ended with. seconds: wall time."""

    code: int
    output: str
    seconds: float


def command(launcher: str, world: int, script: Path, arguments: Sequence[str]) -> list[str]:
    """argv that starts `world` workers of `script` on this machine. ``python`` = one worker without a launcher."""
    worker = [str(script), *arguments]
    python = sys.executable
    if launcher == "python":
        assert world == 1
        return [python, *worker]
    if launcher == "torchrun":
        ports = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        return [python, "-m", "torch.distributed.run", "--nproc-per-node", str(world), *ports, *worker]
    if launcher == "deepspeed":
        options = ["--num_gpus", str(world), "--no_local_rank", "--master_port", str(free_port())]
        return [python, str(BIN / "deepspeed"), *options, *worker]
    if launcher == "mpirun":
        # Open MPI binds and spins: on a shared machine both cost more than they bring.
        options = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
        return ["mpirun", *options, "-np", str(world), python, *worker]
    if launcher in ("horovodrun-gloo", "horovodrun-mpi"):
        options = ["--gloo"] if launcher.endswith("gloo") else ["--mpi", "--mpi-args=--oversubscribe --bind-to none"]
        return [
            python,
            str(BIN / "horovodrun"),
            *options,
            "-np",
            str(world),
            "-H",
            f"localhost:{world}",
            python,
            *worker,
        ]
    raise ValueError(launcher)


def started(
    launcher: str, world: int, script: Path, arguments: Sequence[str], log: Path
) -> AbstractContextManager[subprocess.Popen]:
    """`script` running under `launcher`; see `started_command`."""
    return started_command(command(launcher, world, script, arguments), log)


@contextmanager
def started_command(
    argv: Sequence[str], log: Path, extra: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """The running command, its output going to `log`, with `extra` in its environment. At the end every process that it
    started is gone."""
    tag = uuid.uuid4().hex
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        _TAG: tag,
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        **(extra or {}),
    }
    for name in list(environment):  # a launcher around pytest must not leak into ours
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            del environment[name]
    with log.open("w") as file:
        process = subprocess.Popen(
            argv,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
            for pid in tagged(tag):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(10)


def run(launcher: str, world: int, script: Path, arguments: Sequence[str], log: Path, *, limit_s: float = 120) -> Ended:
    """Runs to the end; fails the test where it does not end within `limit_s`."""
    begin = time.monotonic()
    with started(launcher, world, script, arguments, log) as process:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{launcher} did not end within {limit_s} s:\n{log.read_text()[-3000:]}") from None
    return Ended(code=code, output=log.read_text(errors="replace"), seconds=time.monotonic() - begin)


def run_command(argv: Sequence[str], log: Path, *, limit_s: float = 120, **variables: str) -> Ended:
    """Runs a command of the user's, with `variables` in its environment, from the repository's folder."""
    begin = time.monotonic()
    with started_command(["env", "-C", str(ROOT), *argv], log, variables) as process:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {limit_s} s:\n{log.read_text()[-3000:]}") from None
    return Ended(code=code, output=log.read_text(errors="replace"), seconds=time.monotonic() - begin)


def tagged(tag: str) -> list[int]:
    """Processes that carry `tag` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{_TAG}={tag}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return [pid for pid in found if pid != os.getpid()]


def tag_of(process: subprocess.Popen) -> str:
    """The tag that the processes of `process` carry."""
    content = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    return next(item.decode().partition("=")[2] for item in content if item.startswith(_TAG.encode()))


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
