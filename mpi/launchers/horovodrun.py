"""``horovodrun`` with the gloo or the MPI controller (horovod/runner/launch.py, gloo_run.py, mpi_run.py, 0.28).

It forwards the whole environment and quotes the command, not the folder. ``--disable-cache``: it would remember ssh and
interface checks for 60 minutes by host list, wrong as soon as nodes come and go. ``--network-interfaces`` saves its own
search for common interfaces, which starts a Python on every node. ``-H`` never gets a hostfile: its parser stops at a
blank line.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from mpi import hostfile
from mpi.launchers import mpirun
from mpi.launchers.base import Launch, Plan, require_plain_cwd

_ROOT = Path(__file__).resolve().parent.parent.parent


def gloo(plan: Plan) -> Launch:
    """The gloo controller, horovodrun's own processes over ssh: no MPI needed."""
    require_plain_cwd(plan, "horovodrun")
    options = ("--gloo", *_common(plan), "--gloo-timeout-seconds", str(plan.operation_timeout))
    return _launch(plan, "horovodrun", options)


def mpi(plan: Plan) -> Launch:
    """The MPI controller: horovodrun becomes an Open MPI ``mpirun`` (it says --allow-run-as-root itself)."""
    binding = mpirun.binding()
    # horovodrun names the interfaces itself, and Open MPI refuses a parameter that is given twice.
    rest = mpirun.parameters({key: value for key, value in mpirun.mca(plan).items() if key != "btl_tcp_if_include"})
    options = ("--mpi", *_common(plan), f"--binding-args={shlex.join(binding)}", f"--mpi-args={shlex.join(rest)}")
    return _launch(plan, "horovodrun-mpi", options)


def elastic(plan: Plan) -> Launch:
    """Elastic: gloo, the job goes on with the nodes that are left and takes in new ones (the worker must be made for
    it), with `plan.elastic` workers (default: one to as many as there are slots).

    The discovery script, which horovodrun calls every second, lists the hosts of `plan.watched`, or else of the job;
    horovodrun itself leaves out those that have failed, and gives up when fewer than the fewest are left for long.
    """
    require_plain_cwd(plan, "horovodrun")
    fewest, most = plan.elastic or (1, plan.world_size)
    script = plan.scratch / "discover.sh"
    options = (
        *("--disable-cache", "--start-timeout", str(plan.start_timeout), "--elastic-timeout", str(plan.start_timeout)),
        *("--network-interfaces", plan.network.interface),
        *("--gloo-timeout-seconds", str(plan.operation_timeout)),
        *("-np", str(plan.world_size), "--min-np", str(fewest), "--max-np", str(most)),
        *("--host-discovery-script", str(script)),
    )
    launch = _launch(plan, "horovodrun-elastic", options)
    return replace(launch, files=_discovery(plan), elastic=True)


def _discovery(plan: Plan) -> dict[Path, str]:
    """The script that prints HOST:SLOTS lines, and its files. A watched hostfile is read as every hostfile is, by
    Python, but only when it has changed: a Python a second would take cores from the workers. It may be edited
    meanwhile: a half-written one lists what it lists, and is read again a second later."""
    script = plan.scratch / "discover.sh"
    if not plan.watched:
        return {script: "#!/bin/sh\n" + "".join(f"echo {host.name}:{host.slots}\n" for host in plan.hosts)}
    listed, known = plan.scratch / "discovered", plan.scratch / "discovered.sum"
    most = max(host.slots for host in plan.hosts)
    program = (
        f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from mpi.hostfile import listed_now; "
        f"print(listed_now(sys.argv[1], {most}), end='')"
    )
    read = shlex.join((plan.python, "-I", "-S", "-c", program, plan.watched))
    file, new = shlex.quote(str(listed)), shlex.quote(f"{listed}.new")
    text = (
        f"#!/bin/sh\nnow=$(cksum < {shlex.quote(plan.watched)}) || exit 1\n"
        f'if [ "$now" != "$(cat {shlex.quote(str(known))} 2>/dev/null)" ]; then\n'
        f'  {read} > {new} && mv {new} {file} && echo "$now" > {shlex.quote(str(known))} || exit 1\n'
        f"fi\nexec cat {file}\n"
    )
    # Named here so that they are removed with the script.
    return {script: text, listed: "", known: ""}


def _launch(plan: Plan, name: str, options: tuple[str, ...]) -> Launch:
    argv = (plan.program("horovodrun"), *options, *plan.extra, *plan.worker)
    return Launch(launcher=name, argv=argv, env=dict(plan.env))


def _common(plan: Plan) -> tuple[str, ...]:
    hosts = f"localhost:{plan.world_size}" if plan.is_local else hostfile.as_list(plan.hosts)
    return (
        *("--disable-cache", "--start-timeout", str(plan.start_timeout)),
        *("--network-interfaces", plan.network.interface),
        *("-np", str(plan.world_size), "-H", hosts),
    )
