"""``horovodrun`` with the gloo or the MPI controller (horovod/runner/launch.py, gloo_run.py, mpi_run.py, 0.28).

It forwards the whole environment and quotes the command, not the folder. ``--disable-cache``: it would remember ssh and
interface checks for 60 minutes by host list, wrong as soon as nodes come and go. ``--network-interfaces`` saves its own
search for common interfaces, which starts a Python on every node. ``-H`` never gets a hostfile: its parser stops at a
blank line.
"""

from __future__ import annotations

import shlex
from dataclasses import replace

from mpi import hostfile
from mpi.launchers import mpirun
from mpi.launchers.base import Launch, Plan, require_plain_cwd


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
    """Elastic: gloo, the job goes on with the nodes that are left, down to one (the worker must be made for it).

    The discovery script lists all hosts of the job; horovodrun itself leaves out those that have failed.
    """
    require_plain_cwd(plan, "horovodrun")
    script = plan.scratch / "discover.sh"
    lines = "".join(f"echo {host.name}:{host.slots}\n" for host in plan.hosts)
    options = (
        *("--disable-cache", "--start-timeout", str(plan.start_timeout)),
        *("--network-interfaces", plan.network.interface),
        *("--gloo-timeout-seconds", str(plan.operation_timeout)),
        *("-np", str(plan.world_size), "--min-np", "1", "--max-np", str(plan.world_size)),
        *("--host-discovery-script", str(script)),
    )
    launch = _launch(plan, "horovodrun-elastic", options)
    return replace(launch, files={script: f"#!/bin/sh\n{lines}"}, elastic=True)


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
