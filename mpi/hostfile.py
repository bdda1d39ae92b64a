"""Which machines, and how many processes each: one parser, and a writer for every launcher's own dialect.

A line is ``name [slots=N] [max_slots=N]``; ``#`` starts a comment anywhere; blank lines are free. That is the common
part of what DeepSpeed and Open MPI read. It is parsed once, here, and each launcher is handed what it takes, because
their own parsers differ: Horovod's stops at a blank or comment line, DeepSpeed's wants ``slots=`` on every line and
refuses a host named twice, Open MPI's adds such slots up, and to horovodrun ``-H`` is a list where to deepspeed it is
a file.

Refused with one line each: a host named twice, IPv6 addresses (no launcher's ``-H`` can spell them), ``user@host``, and
whatever is not a host name, so that no name can pass for an option or for shell text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.%\w]*\](:\d+)?|[0-9A-Fa-f]*(:[0-9A-Fa-f]*){2,}(%\w+)?(/\d+)?")
_NUMBER = re.compile(r"[0-9]{1,6}")


class HostfileError(UserError, ValueError):
    """A hostfile or host list that cannot be used. One line: where, what, and the remedy."""


@dataclass(frozen=True)
class Host:
    """A machine and the processes it takes: `slots` by default, at most `max_slots` (None = `slots`)."""

    name: str
    slots: int = 1
    max_slots: int | None = None

    @property
    def limit(self) -> int:
        return self.slots if self.max_slots is None else self.max_slots


def local(slots: int) -> tuple[Host, ...]:
    """This machine alone."""
    return (Host("localhost", slots),)


def parse_file(path: str | Path) -> tuple[Host, ...]:
    """The hosts of a hostfile in its order. Raises HostfileError naming file and line."""
    path = Path(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise HostfileError(f"{path}: no such hostfile: write one line 'NAME slots=N' for each machine") from None
    except (OSError, UnicodeDecodeError) as error:
        raise HostfileError(f"{path}: cannot read the hostfile: {error}") from None
    return parse_text(text, where=str(path))


def parse_text(text: str, *, where: str = "hostfile") -> tuple[Host, ...]:
    """The hosts in `text`. Raises HostfileError naming `where` and the line number."""
    hosts: list[Host] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        at = f"{where}:{number}"
        host = _parse_line(line, at)
        if host.name in seen:
            raise HostfileError(
                f"{at}: host '{host.name}' is already on line {seen[host.name]}: name it once and add its slots up"
            )
        seen[host.name] = number
        hosts.append(host)
    if not hosts:
        raise HostfileError(f"{where}: it names no host: write one line 'NAME slots=N' for each machine")
    return tuple(hosts)


def parse_list(text: str) -> tuple[Host, ...]:
    """The hosts of a list like ``a:1,b:2`` (horovodrun's ``-H``); a name without a number has one slot."""
    hosts: list[Host] = []
    for item in text.split(","):
        item = item.strip()
        at = f"host list '{text}'"
        if item.count(":") > 1 or item.startswith("["):
            raise HostfileError(_ipv6_message(at, item))
        name, _, slots = item.partition(":")
        host = Host(_name(name, at), _count(slots, "slots", at) if ":" in item else 1)
        if any(host.name == other.name for other in hosts):
            raise HostfileError(f"{at}: host '{host.name}' is named twice: name each machine once and add its slots up")
        hosts.append(host)
    return tuple(hosts)


def take(hosts: Sequence[Host], nodes: int, slots: int) -> tuple[Host, ...]:
    """The first `nodes` hosts with `slots` processes each. Raises HostfileError where there are too few of either."""
    if nodes < 1 or slots < 1:
        raise HostfileError(f"nodes is {nodes} and slots is {slots}: each must be at least 1")
    if nodes > len(hosts):
        names = ", ".join(host.name for host in hosts)
        raise HostfileError(
            f"{nodes} nodes were asked for, {len(hosts)} given ({names}): add hosts or use --nodes {len(hosts)}"
        )
    for host in hosts[:nodes]:
        if slots > host.limit:
            raise HostfileError(
                f"{slots} slots a node were asked for, host '{host.name}' has {host.limit}: raise its slots= in the "
                f"hostfile or use --slots {host.limit}"
            )
    return tuple(Host(host.name, slots) for host in hosts[:nodes])


def total_slots(hosts: Iterable[Host]) -> int:
    """Processes over all hosts."""
    return sum(host.slots for host in hosts)


# -- what each launcher takes ---------------------------------------------------------------------------------------
def as_deepspeed(hosts: Iterable[Host]) -> str:
    """DeepSpeed's hostfile, which its openmpi launcher hands to Open MPI unchanged."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def as_openmpi(hosts: Iterable[Host]) -> str:
    """Open MPI's hostfile. max_slots equals slots, so that an oversubscribed job is refused, not squeezed in."""
    return "".join(f"{host.name} slots={host.slots} max_slots={host.limit}\n" for host in hosts)


def as_mpich(hosts: Iterable[Host]) -> str:
    """MPICH's (Hydra's) host file."""
    return "".join(f"{host.name}:{host.slots}\n" for host in hosts)


def as_list(hosts: Iterable[Host]) -> str:
    """``a:1,b:1``: the ``-H`` of horovodrun and mpirun."""
    return ",".join(f"{host.name}:{host.slots}" for host in hosts)


def as_names(hosts: Iterable[Host]) -> str:
    """``a,b``: srun's ``--nodelist``, pdsh's ``-w``."""
    return ",".join(host.name for host in hosts)


# -- parts of a line ------------------------------------------------------------------------------------------------
def _parse_line(line: str, at: str) -> Host:
    first, *rest = line.split()
    values: dict[str, int] = {}
    for word in rest:
        key, equals, value = word.partition("=")
        key = key.replace("-", "_")
        if not equals or key not in ("slots", "max_slots"):
            raise HostfileError(f"{at}: '{word}' is not understood: write 'NAME slots=N', without spaces around '='")
        if key in values:
            raise HostfileError(f"{at}: '{key}' is given twice: keep one")
        values[key] = _count(value, key, at)
    host = Host(_name(first, at), values.get("slots", values.get("max_slots", 1)), values.get("max_slots"))
    if host.max_slots is not None and host.max_slots < host.slots:
        raise HostfileError(f"{at}: max_slots={host.max_slots} is below slots={host.slots}: raise it or leave it out")
    return host


def _count(text: str, key: str, at: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) < 1:
        raise HostfileError(f"{at}: {key}={text or '(nothing)'} is not a whole number from 1: leave such a machine out")
    return int(text)


def _name(text: str, at: str) -> str:
    if _NAME.fullmatch(text) and len(text) <= 253:
        return text
    if ":" in text:
        if _IPV6.fullmatch(text):
            raise HostfileError(_ipv6_message(at, text))
        raise HostfileError(f"{at}: '{text}' is not a host name: write 'slots=N', and the port in ~/.ssh/config")
    if "@" in text:
        raise HostfileError(f"{at}: '{text}' names a user: leave it out and put 'User' into ~/.ssh/config")
    raise HostfileError(f"{at}: '{text}' is not a host name: use letters, digits, '.', '-' and '_'")


def _ipv6_message(at: str, text: str) -> str:
    return f"{at}: '{text}' is an IPv6 address, which the launchers cannot take: use a name from DNS or /etc/hosts"
