"""Links of virtual nodes: veth pairs to a bridge, token-bucket limits, byte counters. Needs root and iproute2."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from mpi.errors import UserError

_RATE = re.compile(r"(\d+(?:\.\d+)?)(k|m|g)bit")
_QUEUE_MS = 50


class LinkError(UserError):
    """A link that cannot be made or limited. One line."""


def bytes_per_second(rate: str) -> float:
    """`rate` in tc's words ("100mbit", "1gbit", "2.5gbit") as bytes per second. Raises LinkError."""
    match = _RATE.fullmatch(rate)
    if not match or float(match.group(1)) <= 0:
        raise LinkError(f"'{rate}' is not a link rate: write it like 100mbit, 1gbit or 2.5gbit")
    return float(match.group(1)) * {"k": 1e3, "m": 1e6, "g": 1e9}[match.group(2)] / 8


def make_bridge(hub: int) -> None:
    """A bridge br0 in the network namespace of process `hub`."""
    _ip(hub, "link add br0 type bridge\nlink set br0 up\nlink set lo up\n")


def connect(hub: int, port: str, node: int, interface: str, address: str, rate: str) -> None:
    """A cable from `interface` of process `node`'s namespace to `port` on the bridge of `hub`."""
    # Made straight inside the two namespaces: the host never sees either end.
    _run(["ip", "link", "add", interface, "netns", str(node), "type", "veth", "peer", "name", port, "netns", str(hub)])
    _ip(hub, f"link set {port} master br0\nlink set {port} up\n")
    _ip(node, f"link set lo up\naddr add {address} dev {interface}\nlink set {interface} up\n")
    if rate:
        limit(node, interface, rate)
        limit(hub, port, rate)


def set_port(hub: int, port: str, *, up: bool) -> None:
    """The switch's end of a cable."""
    _ip(hub, f"link set {port} {'up' if up else 'down'}\n")


def limit(pid: int, interface: str, rate: str) -> None:
    """Limits what `interface` sends to `rate` (empty = no limit), by a token bucket.

    The bucket holds 0.5 ms of the rate, at least 64 KiB (one segment as the kernel hands it over): small enough that a
    message of some hundred KiB already runs at the rate. The queue holds 50 ms.
    """
    enter = ["nsenter", "-t", str(pid), "--net", "--"]
    if not rate:
        subprocess.run([*enter, "tc", "qdisc", "del", "dev", interface, "root"], capture_output=True, timeout=10)
        return
    burst = max(65536, int(bytes_per_second(rate) * 0.0005))
    words = ["root", "tbf", "rate", rate, "burst", str(burst), "latency", f"{_QUEUE_MS}ms"]
    _run([*enter, "tc", "qdisc", "replace", "dev", interface, *words])


def close_ports(pid: int) -> None:
    """A firewall: TCP ports 16384 to 32767 of process `pid`'s namespace answer nobody, without a word."""
    _ip(pid, "rule add ipproto tcp sport 16384-32767 blackhole\n")


def counters(pid: int, interface: str) -> tuple[int, int]:
    """(received, sent) bytes of `interface` in the network namespace of process `pid`."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, values = line.partition(":")
        if name.strip() == interface:
            fields = values.split()
            return int(fields[0]), int(fields[8])
    raise LinkError(f"process {pid} has no interface {interface}")


def _ip(pid: int, commands: str) -> None:
    _run(["nsenter", "-t", str(pid), "--net", "--", "ip", "-batch", "-"], commands)


def _run(argv: list[str], text: str = "") -> None:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=10)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise LinkError(f"{' '.join(argv[-6:])}: {said}")
