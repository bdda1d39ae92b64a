"""Which machines, and how many processes each: one parser, and a writer for every launcher's own dialect.

A line is ``name [slots=N] [max_slots=N]``; ``#`` starts a comment anywhere; blank lines are free. That is the common
part of what DeepSpeed and Open MPI read. ``node[01-04,7]`` is five hosts with these slots each, as Slurm and pdsh write
it. It is parsed once, here, and each launcher is handed what it takes, because their own parsers differ: Horovod's
stops at a blank or comment line, DeepSpeed's wants ``slots=`` on every line and refuses a host named twice, Open MPI's
adds such slots up, none knows ranges, and to horovodrun ``-H`` is a list where to deepspeed it is a file.

Refused with one line each: a host named twice, IPv6 addresses (no launcher's ``-H`` can spell them), ``user@host``, and
whatever is not a host name, so that no name can pass for an option or for shell text. Read as meant: byte order marks,
the line ends of Windows, ``SLOTS=2``.
"""

from __future__ import annotations

import codecs
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.%\w]*\](:\d+)?|[0-9A-Fa-f]*(:[0-9A-Fa-f]*){2,}(%\w+)?(/\d+)?")
_NUMBER = re.compile(r"[0-9]+")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_MOST_SLOTS, _MOST_HOSTS = 100_000, 100_000
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# What people write for slots=N, from other programs.
_SLOT_WORDS = "slot slots max_slot np nproc ppn cpu cpus gpu gpus procs tasks processes"
_FOR_SLOTS = frozenset(_SLOT_WORDS.split())
# What belongs to ssh: the word -> its name in ~/.ssh/config.
_FOR_SSH = {"port": "Port", "ssh_port": "Port", "user": "User", "username": "User", "login": "User"}
_FOR_SSH |= {"key": "IdentityFile", "hostname": "HostName", "address": "HostName", "ip": "HostName"}


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
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise HostfileError(f"{path}: a folder, not a hostfile: name the file in it")
        if not stat.S_ISREG(mode):
            raise HostfileError(f"{path}: the hostfile is read more than once: write it to a plain file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise HostfileError(f"{path}: no such hostfile: write one line 'NAME slots=N' for each machine") from None
    except OSError as error:
        why = error.strerror or error
        raise HostfileError(f"{path}: cannot read the hostfile ({why}): make it readable for yourself") from None
    coding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(coding)
    except UnicodeDecodeError:
        raise HostfileError(f"{path}: cannot read the hostfile: not text in UTF-8: save it as plain text") from None
    return parse_text(text, where=str(path))


def parse_text(text: str, *, where: str = "hostfile") -> tuple[Host, ...]:
    """The hosts in `text`. Raises HostfileError naming `where` and the line number."""
    hosts: list[Host] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        at = f"{where}:{number}"
        for host in _parse_line(line, at):
            if (same := host.name.lower()) in seen:  # names of hosts have no case
                raise HostfileError(
                    f"{at}: host '{host.name}' is already on line {seen[same]}: name it once and add its slots up"
                )
            seen[same] = number
            hosts.append(host)
        if len(hosts) > _MOST_HOSTS:
            raise HostfileError(f"{at}: more than {_MOST_HOSTS} hosts: mend the range")
    if not hosts:
        raise HostfileError(f"{where}: it names no host: write one line 'NAME slots=N' for each machine")
    return tuple(hosts)


def parse_list(text: str) -> tuple[Host, ...]:
    """The hosts of a list like ``a:1,b:2,n[1-3]:4`` (horovodrun's ``-H``); a name without a number has one slot."""
    hosts: list[Host] = []
    at = f"host list '{text}'"
    for item in re.split(r",(?![^\[\]]*\])", text):  # not at the commas between brackets
        item = item.strip()
        if item.count(":") > 1 or item.startswith("["):
            raise HostfileError(_ipv6_message(at, item))
        name, _, slots = item.partition(":")
        count = _count(slots, "slots", at) if ":" in item else 1
        for host in (Host(name, count) for name in _names(name, at)):
            if any(host.name.lower() == other.name.lower() for other in hosts):
                raise HostfileError(
                    f"{at}: host '{host.name}' is named twice: name each machine once and add its slots up"
                )
            hosts.append(host)
    return tuple(hosts)


def listed_now(path: str | Path, most: int) -> str:
    """``NAME:SLOTS`` lines of a hostfile that may be edited at this moment: what is not understood is left out. most:
    slots of a host at most. Horovod's discovery asks for it while an elastic job runs."""
    try:
        text = Path(path).read_bytes()
    except OSError:
        return ""
    coding = next((name for mark, name in _MARKS if text.startswith(mark)), "utf-8")
    found: dict[str, Host] = {}
    for line in text.decode(coding, errors="replace").splitlines():
        try:
            found |= {host.name: host for host in parse_text(line)}
        except HostfileError:
            continue
    return "".join(f"{host.name}:{min(host.slots, most)}\n" for host in found.values())


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


def idle(hosts: Sequence[Host], nodes: int, slots: int) -> str:
    """One line saying which slots of `hosts` stay idle when the first `nodes` take `slots` each; empty for none."""
    wasted = {host.name: host.slots - slots for host in hosts[:nodes] if host.slots > slots}
    if not wasted:
        return ""
    shown = ", ".join(f"{name} {count}" for name, count in list(wasted.items())[:6])
    shown += ", ..." if len(wasted) > 6 else ""
    fewest = min(host.slots for host in hosts[:nodes])
    why = f"the hosts differ, the smallest has {fewest}" if fewest == slots else "fewer were asked for"
    total = sum(wasted.values())
    return f"{total} slots stay idle ({shown}): every host runs {slots} ({why})"


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
def _parse_line(line: str, at: str) -> list[Host]:
    first, *rest = line.split()
    names = _names(first, at)
    values: dict[str, int] = {}
    for word in rest:
        key, equals, value = word.partition("=")
        key = key.lower().replace("-", "_")
        if not equals or key not in ("slots", "max_slots"):
            raise HostfileError(f"{at}: '{word}' is not understood: {_remedy(first, word, key, value)}")
        if key in values:
            raise HostfileError(f"{at}: '{key}' is given twice: keep one")
        values[key] = _count(value, key, at)
    slots, most = values.get("slots", values.get("max_slots", 1)), values.get("max_slots")
    if most is not None and most < slots:
        raise HostfileError(f"{at}: max_slots={most} is below slots={slots}: raise it or leave it out")
    return [Host(name, slots, most) for name in names]


def _remedy(host: str, word: str, key: str, value: str) -> str:
    """What to write instead of a word behind the name."""
    if key in _FOR_SSH:
        wanted = f"{_FOR_SSH[key]} {value}".strip()
        return f"leave it out and put 'Host {host}' and '{wanted}' into ~/.ssh/config, which all launchers follow"
    number = value if _NUMBER.fullmatch(value) else "N"
    if key in _FOR_SLOTS and value:
        return f"write 'slots={number}', processes on this host"
    if _NUMBER.fullmatch(word) or word.startswith(("slots:", ":")):
        number = word.rpartition(":")[2]
        return f"write 'slots={number or 'N'}'"
    return "write 'NAME slots=N', one host a line, without spaces around '='"


def _count(text: str, key: str, at: str) -> int:
    bare = text.strip(",;'\"")
    if _NUMBER.fullmatch(bare) and bare != text:
        raise HostfileError(f"{at}: {key}={text} has more than a number: write {key}={bare}")
    if not _NUMBER.fullmatch(text) or int(text) < 1:
        remedy = "leave such a machine out" if text.strip("-0") == "" and text else f"write {key}=N with its processes"
        raise HostfileError(f"{at}: {key}={text or '(nothing)'} is not a whole number from 1: {remedy}")
    if int(text) > _MOST_SLOTS:
        raise HostfileError(f"{at}: {key}={text} is more than {_MOST_SLOTS}: write the processes of one host")
    return int(text)


def _names(text: str, at: str) -> list[str]:
    """The host names that `text` stands for: one, or all of its ranges, with leading zeros as Slurm keeps them."""
    if text.startswith("[") or not ("[" in text or "]" in text):
        return [_name(text, at)]
    names = [""]
    for part in re.split(r"(\[[^\[\]]*\])", text):
        steps = [part]
        if part.startswith("[") and part.endswith("]"):
            steps = [number for item in part[1:-1].split(",") for number in _numbers(item, text, at)]
        names = [name + step for name in names for step in steps]
        if len(names) > _MOST_HOSTS:
            raise HostfileError(f"{at}: '{text}' is more than {_MOST_HOSTS} hosts: mend the range")
    return [_name(name, at) for name in names]


def _numbers(item: str, text: str, at: str) -> list[str]:
    match = _RANGE.fullmatch(item)
    first, last = match.groups() if match else ("", "")
    if not match or (last is not None and int(last) < int(first)):
        raise HostfileError(f"{at}: '{item}' in '{text}' is not a range: write it like node[01-04,7]")
    if int(last or first) - int(first) > _MOST_HOSTS:
        raise HostfileError(f"{at}: '{text}' is more than {_MOST_HOSTS} hosts: mend the range")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]


def _name(text: str, at: str) -> str:
    if _NAME.fullmatch(text) and len(text) <= 253:
        return text
    if ":" in text:
        if _IPV6.fullmatch(text):
            raise HostfileError(_ipv6_message(at, text))
        raise HostfileError(f"{at}: '{text}' is not a host name: write 'slots=N', and the port in ~/.ssh/config")
    if "@" in text:
        raise HostfileError(f"{at}: '{text}' names a user: leave it out and put 'User' into ~/.ssh/config")
    if "," in text:
        raise HostfileError(f"{at}: '{text}' is not a host name: write one host a line, without commas")
    if "=" in text:
        raise HostfileError(f"{at}: '{text}' is not a host name: begin the line with it: 'NAME slots=N'")
    raise HostfileError(f"{at}: '{text}' is not a host name: use letters, digits, '.', '-' and '_'")


def _ipv6_message(at: str, text: str) -> str:
    return f"{at}: '{text}' is an IPv6 address, which the launchers cannot take: use a name from DNS or /etc/hosts"
