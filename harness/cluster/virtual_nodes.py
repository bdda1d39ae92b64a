"""`harness nodes`: several machines on this one, to try what a cluster does without having one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import click

from harness.job.number_ranges import COUNT, WHOLE
from mpi.nodes import cluster, processes

_NAME = click.option(
    "--name", default="default", show_default=True, help="Name of the set; sets do not see each other."
)


class _Nodes(click.Group):
    """The scaling study is a module of its own, imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "scaling"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "scaling":
            from harness.experiments.virtual_scaling.run import scaling

            return scaling
        return super().get_command(ctx, name)


@click.group(cls=_Nodes)
def nodes() -> None:
    """Virtual nodes: several hosts with their own name, network, sshd and limited links on one machine.

    Needs root. Nothing of the machine is edited: addresses, names and keys exist inside the nodes only.

    \b
    harness nodes up 2 --rate 1gbit --cores-per-node 1
    harness nodes exec a harness run --backend deepspeed --nodes 2
    harness nodes exec a horovodrun -np 2 -H a:1,b:1 python harness/run.py --backend horovod
    harness nodes down
    """


@nodes.command()
@click.argument("count", type=COUNT)
@_NAME
@click.option("--rate", default="", help="Rate of each link, each way: 100mbit, 1gbit, 2.5gbit. Default: unlimited.")
@click.option("--cores-per-node", type=WHOLE, default=0, help="CPUs a node may use. Default: all of them, shared.")
@click.option("--slots", type=COUNT, default=1, show_default=True, help="Slots a node in the hostfile that is printed.")
def up(count: int, name: str, rate: str, cores_per_node: int, slots: int) -> None:
    """Make COUNT nodes, called a, b, c ..."""
    began = time.monotonic()
    made = cluster.up(name, count, rate=rate, cores_per_node=cores_per_node)
    click.echo(f"set '{name}': {count} nodes in {time.monotonic() - began:.1f} s, links {rate or 'unlimited'}")
    if made.shared_cores:
        click.echo("note: the nodes share this machine's cores: compute times are not those of separate machines")
    click.echo("hostfile:")
    click.echo(made.hostfile(slots), nl=False)


@nodes.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_NAME
def exec(node: str, command: tuple[str, ...], name: str) -> None:
    """Run COMMAND inside NODE, in this folder, with this program's Python first on PATH.

    --name stands before NODE.
    """
    made = cluster.load(name)
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    sys.exit(_run(made.argv(node, command), environ))


@nodes.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def status(as_json: bool) -> None:
    """Show every set: its nodes, links, processes and bytes on the wire."""
    sets = []
    for name in cluster.names():
        try:
            made = cluster.load(name)
        except cluster.NodesError as error:
            sets.append({"name": name, "alive": False, "problem": str(error), "nodes": []})
            continue
        wire = made.wire_bytes()
        rows = [
            {
                "node": node.name,
                "address": node.address,
                "alive": node.alive,
                "sshd": bool(node.alive and made.sshd(node.name)),
                "cores": list(node.cores),
                "processes": len(made.processes(node.name)) if node.alive else 0,
                "received_bytes": wire.get(node.name, (0, 0))[0],
                "sent_bytes": wire.get(node.name, (0, 0))[1],
            }
            for node in made.nodes
        ]
        sets.append(
            {"name": name, "alive": made.alive, "rate": made.rate, "shared_cores": made.shared_cores, "nodes": rows}
        )
    if as_json:
        click.echo(json.dumps({"sets": sets}, indent=1))
        return
    if not sets:
        click.echo("no virtual nodes: harness nodes up 2")
    for one in sets:
        _print_set(one)


@nodes.command()
@_NAME
@click.option("--all", "every", is_flag=True, help="Every set, also what crashes have left.")
def down(name: str, every: bool) -> None:
    """End a set and everything that runs in it."""
    for one in cluster.names() if every else [name]:
        click.echo(f"set '{one}': {cluster.down(one)} nodes ended")


@nodes.command()
@click.argument("rate")
@_NAME
def rate(rate: str, name: str) -> None:
    """Set every link of a set to RATE (100mbit, 1gbit ...; 'unlimited')."""
    cluster.load(name).set_rate("" if rate == "unlimited" else rate)
    click.echo(f"set '{name}': links {rate}")


@nodes.command()
@click.argument("node")
@click.argument("what", type=click.Choice(["cut", "heal", "sshd-stop", "sshd-start", "off"]))
@_NAME
def fault(node: str, what: str, name: str) -> None:
    """Break a NODE on purpose: cut or heal its cable, stop or start its sshd, switch it off."""
    made = cluster.load(name)
    action = {
        "cut": made.cut,
        "heal": made.heal,
        "sshd-stop": made.stop_sshd,
        "sshd-start": made.start_sshd,
        "off": made.power_off,
    }[what]
    action(node)
    click.echo(f"node {node}: {what}")


def _print_set(one: Mapping[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    if one["nodes"] == []:
        click.echo(str(one["problem"]))
        return
    shared = ", cores shared" if one["shared_cores"] else ""
    table = Table(title=f"set '{one['name']}': links {one['rate'] or 'unlimited'}{shared}", title_justify="left")
    for heading in ("node", "address", "state", "sshd", "cores", "processes", "received MB", "sent MB"):
        table.add_column(heading, justify="right" if heading[-2:] == "MB" or heading == "processes" else "left")
    for row in one["nodes"]:  # type: ignore[attr-defined]
        table.add_row(
            row["node"],
            row["address"],
            "up" if row["alive"] else "off",
            "up" if row["sshd"] else "down",
            ",".join(map(str, row["cores"])),
            str(row["processes"]),
            f"{row['received_bytes'] / 1e6:.2f}",
            f"{row['sent_bytes'] / 1e6:.2f}",
        )
    Console().print(table)


def _run(argv: list[str], environ: Mapping[str, str]) -> int:
    """Runs `argv`, hands SIGTERM and SIGHUP on to what it started inside the node, returns its exit status.

    Ctrl-C reaches the whole foreground group by itself; nsenter hands nothing on.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals that came while it was being started

    def hand_on(number: int, _frame: object) -> None:
        if process is None:
            early.append(number)
            return
        while not (inside := processes.children(process.pid)) and processes.start_time(process.pid) >= 0:
            time.sleep(0.01)  # it has not entered yet
        processes.send(inside, number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    process = subprocess.Popen(argv, env=environ)
    for came in early:
        hand_on(came, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = process.wait()
    return code if code >= 0 else 128 - code
