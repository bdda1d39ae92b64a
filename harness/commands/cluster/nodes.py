"""`harness cluster nodes`: several machines on this one, to try what a cluster does without having one."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import click

from harness.cluster.virtual_nodes import print_set, run_inside
from harness.commands.number_types import COUNT, WHOLE
from harness.commands.options import json_option
from mpi.nodes import cluster

_NAME = click.option(
    "--name", default="default", show_default=True, help="Name of the set; sets do not see each other."
)


@click.group()
def nodes() -> None:
    """Virtual nodes: several hosts with their own name, network, sshd and limited links on one machine.

    Needs root. Nothing of the machine is edited: addresses, names and keys exist inside the nodes only.

    \b
    harness cluster nodes up 2 --rate 1gbit --cores-per-node 1
    harness cluster nodes exec a harness run --backend deepspeed --nodes 2
    harness cluster nodes exec a horovodrun -np 2 -H a:1,b:1 python harness/run.py --backend horovod
    harness cluster nodes down
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
    sys.exit(run_inside(made.argv(node, command), environ))


@nodes.command()
@json_option
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
        click.echo("no virtual nodes: harness cluster nodes up 2")
    for one in sets:
        print_set(one)


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
