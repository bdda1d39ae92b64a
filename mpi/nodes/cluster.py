"""Sets of virtual nodes: made, found again, looked at, broken on purpose and taken down.

A set's state is a folder in /run/harness-nodes: set.json, keys, and for each node what `mpi.nodes.init` needs. A node
is alive while the process in set.json is (id and start time, so that a reused id is not taken for it).
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mpi.errors import UserError
from mpi.nodes import init, link

STATE = Path("/run/harness-nodes")
INTERFACE = "net0"  # not eth0, so that whoever assumes eth0 is found out
MAX_NODES = 250
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_READY_S = 30.0


class NodesError(UserError):
    """Virtual nodes that cannot be made or used. One line: the thing and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """pid: the node's first process, seen from the host, with its start time (clock ticks). cores: host CPUs."""

    name: str
    address: str
    cores: tuple[int, ...]
    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A set of nodes. rate: of each link, each way, in tc's words ("1gbit"), empty = unlimited.

    shared_cores: the nodes' cores outnumber the machine's, so computing times mean nothing.
    """

    name: str
    nodes: tuple[Node, ...]
    hub: Node
    rate: str
    shared_cores: bool

    @property
    def folder(self) -> Path:
        return STATE / self.name

    @property
    def alive(self) -> bool:
        return self.hub.alive and all(node.alive for node in self.nodes)

    def node(self, name: str) -> Node:
        """The node called `name`. Raises NodesError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise NodesError(f"no node '{name}' in set '{self.name}': it has {', '.join(node.name for node in self.nodes)}")

    def argv(self, name: str, command: Sequence[str], *, cwd: str | Path | None = None) -> list[str]:
        """The argv that runs `command` in the node, on its cores, in `cwd` (default: this process's folder).

        ``NAME=VALUE`` words in front of the command are set in its environment, as with env(1).
        """
        node = self.node(name)
        if not node.alive:
            raise NodesError(f"node '{name}' is off: harness nodes down --name {self.name}, then up again")
        cores = ",".join(map(str, node.cores))
        inside = ["env", "-C", str(Path(cwd or ".").absolute()), *command]
        return ["taskset", "-c", cores, *_nsenter(node, "net", "uts", "mount", "pid", "ipc"), *inside]

    def run(self, name: str, command: Sequence[str], *, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs `command` in the node and waits at most `timeout` seconds; output as text."""
        return subprocess.run(
            self.argv(name, command), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )

    def hostfile(self, slots: int = 1) -> str:
        """Text of a hostfile with all nodes."""
        return "".join(f"{node.name} slots={slots}\n" for node in self.nodes)

    # -- what happened ----------------------------------------------------------------------------------------------
    def wire_bytes(self) -> dict[str, tuple[int, int]]:
        """(received, sent) bytes of each node's link since it was made, headers included.

        Counted per segment that the kernel hands to the link: the headers of frames sent as one count once.
        """
        return {node.name: link.counters(node.pid, INTERFACE) for node in self.nodes if node.alive}

    def processes(self, name: str) -> list[int]:
        """Host-side ids of the processes in the node, but for its first one and its sshd."""
        node = self.node(name)
        found = []
        for pid in _members(node):
            if pid != node.pid and _command(pid) != "sshd":
                found.append(pid)
        return found

    def sshd(self, name: str) -> list[int]:
        """Host-side ids of the node's sshd processes."""
        return [pid for pid in _members(self.node(name)) if _command(pid) == "sshd"]

    # -- faults -----------------------------------------------------------------------------------------------------
    def cut(self, name: str) -> None:
        """Pulls the node's cable: no reset, no word to anybody."""
        link.set_port(self.hub.pid, self._port(name), up=False)

    def heal(self, name: str) -> None:
        """Plugs it in again."""
        link.set_port(self.hub.pid, self._port(name), up=True)

    def power_off(self, name: str) -> None:
        """The machine is gone at once."""
        node = self.node(name)
        if node.alive:
            os.kill(node.pid, signal.SIGKILL)
        _wait_gone([node])

    def stop_sshd(self, name: str) -> None:
        """Ends the node's sshd and its sessions: connections are refused."""
        deadline = time.monotonic() + 10
        while left := self.sshd(name):
            if time.monotonic() > deadline:
                raise NodesError(f"node '{name}': sshd does not end (processes {left})")
            for pid in left:  # one may have begun a session meanwhile
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def start_sshd(self, name: str) -> None:
        """Starts it again."""
        done = self.run(name, [_program("sshd"), "-f", str(self.folder / f"{name}.sshd_config")])
        if done.returncode:
            raise NodesError(f"node '{name}': sshd does not start: {done.stderr.strip()}")
        try:
            init.wait_until_listening(f"/proc/{self.node(name).pid}/net/tcp", 22)
        except OSError as error:
            raise NodesError(f"node '{name}': sshd does not start: {error}") from error

    def set_rate(self, rate: str) -> Cluster:
        """The set with another rate on every link, empty = unlimited."""
        for index, node in enumerate(self.nodes):
            link.limit(node.pid, INTERFACE, rate)
            link.limit(self.hub.pid, f"p{index}", rate)
        changed = Cluster(name=self.name, nodes=self.nodes, hub=self.hub, rate=rate, shared_cores=self.shared_cores)
        _save(changed)
        return changed

    def limit(self, name: str, rate: str) -> None:
        """One slow cable: this node's, each way."""
        link.limit(self.node(name).pid, INTERFACE, rate)
        link.limit(self.hub.pid, self._port(name), rate)

    def close_ports(self, name: str) -> None:
        """A firewall in front of the node: TCP ports 16384 to 32767 are silently closed, ssh still works."""
        link.close_ports(self.node(name).pid)

    def mount(self, name: str, source: str | Path, target: str | Path) -> None:
        """`source` is seen at `target` in this node only, over what was there."""
        self._inside(name, ["mount", "--bind", str(source), str(target)])

    def mount_small_disk(self, name: str, target: str | Path, kib: int) -> None:
        """An empty file system of `kib` KiB at `target`, in this node only."""
        self._inside(name, ["mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=0755", "small", str(target)])

    def unmount(self, name: str, target: str | Path) -> None:
        """Takes the topmost mount at `target` away."""
        self._inside(name, ["umount", str(target)])

    def _inside(self, name: str, command: list[str]) -> None:
        done = self.run(name, command)
        if done.returncode:
            raise NodesError(f"node '{name}': {' '.join(command[:2])}: {done.stderr.strip()}")

    def _port(self, name: str) -> str:
        self.node(name)
        return next(f"p{index}" for index, node in enumerate(self.nodes) if node.name == name)


# -- making, finding, ending ----------------------------------------------------------------------------------------
def up(
    name: str = "default",
    count: int = 2,
    *,
    rate: str = "",
    cores_per_node: int = 0,
    tied: bool = False,
) -> Cluster:
    """Makes a set of `count` nodes a, b, c ... and returns it when every sshd answers.

    rate: of each link, each way. cores_per_node: CPUs a node may use, in turn over this machine's; 0 = all of them.
    tied: the set ends with this process, however that ends (for tests). Raises NodesError; then nothing is left.
    """
    _check(name, count, cores_per_node)
    if rate:
        link.bytes_per_second(rate)
    previous = _load(name)
    if previous is not None and previous.hub.alive:
        raise NodesError(f"node set '{name}' is up: harness nodes down --name {name}, or give another --name")
    _sweep()
    folder = STATE / name
    if folder.exists():
        down(name)
    folder.mkdir(parents=True, mode=0o755)
    started: list[Node] = []
    try:
        names = tuple(_names(count))
        addresses = [f"10.77.{index // 200}.{index % 200 + 1}" for index in range(count)]
        _write_shared(folder, names, addresses)
        owner = _owner_pipe() if tied else None
        hub = _start(folder, "hub", "", _all_cores(), [], sshd="", owner=owner)
        started.append(hub)
        link.make_bridge(hub.pid)
        cores = _deal_cores(count, cores_per_node)
        for node_name, address, own in zip(names, addresses, cores, strict=True):
            mounts = _mounts(folder, node_name)
            started.append(_start(folder, node_name, address, own, mounts, sshd=_program("sshd"), owner=owner))
        nodes = tuple(started[1:])
        for index, node in enumerate(nodes):
            link.connect(hub.pid, f"p{index}", node.pid, INTERFACE, f"{node.address}/16", rate)
        for one in (hub, *nodes):
            (folder / f"{one.name}.go").touch()
        _wait_state(folder, nodes, "up")
        shared = cores_per_node == 0 or count * cores_per_node > len(_all_cores())
        cluster = Cluster(name=name, nodes=nodes, hub=hub, rate=rate, shared_cores=shared and count > 1)
        _save(cluster)
    except BaseException:
        _end(started)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return cluster


def load(name: str = "default") -> Cluster:
    """The set called `name`. Raises NodesError where there is none, or it is only the rest of a crash."""
    cluster = _load(name)
    if cluster is None:
        known = ", ".join(names()) or "none"
        raise NodesError(f"no node set '{name}' (there are: {known}): harness nodes up 2 --name {name}")
    if not cluster.hub.alive:
        raise NodesError(f"node set '{name}' has died: harness nodes down --name {name}, then up again")
    return cluster


def names() -> list[str]:
    """The sets that have a folder, alive or not."""
    return sorted(path.name for path in STATE.iterdir() if path.is_dir()) if STATE.is_dir() else []


def down(name: str = "default") -> int:
    """Ends a set, or what a crash has left of it, and returns how many nodes it had. Nothing to do is no error."""
    folder = STATE / name
    found = list(_recorded(folder))
    _end(found)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        STATE.rmdir()
    return max(0, len(found) - 1)


def _sweep() -> None:
    """Takes away what tied sets have left whose owner was killed: their nodes are gone, their folders are not."""
    for name in names():
        made = _load(name)
        spec = _read(STATE / name / "hub.json")
        if made is not None and not made.hub.alive and spec and json.loads(spec)["tied"]:
            down(name)


# -- parts ------------------------------------------------------------------------------------------------------------
def start_time(pid: int) -> int:
    """Start of a process in clock ticks since boot; -1 if there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def _check(name: str, count: int, cores_per_node: int) -> None:
    if not _NAME.fullmatch(name):
        raise NodesError(f"'{name}' cannot name a node set: use small letters, digits and '-'")
    if not 1 <= count <= MAX_NODES:
        raise NodesError(f"{count} nodes were asked for: use 1 to {MAX_NODES}")
    if cores_per_node > len(_all_cores()):
        raise NodesError(f"{cores_per_node} cores a node were asked for, this machine has {len(_all_cores())}")
    if os.geteuid() != 0:
        raise NodesError("virtual nodes need root (they are network namespaces): run it with sudo")
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=_PATH) is None:
            raise NodesError(f"virtual nodes need '{program}': apt install {package}")


_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_PROGRAMS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nsenter": "util-linux",
    "taskset": "util-linux",
}


def _program(name: str) -> str:
    return shutil.which(name, path=_PATH) or name


def _names(count: int) -> Iterator[str]:
    letters = string.ascii_lowercase
    for index in range(count):
        yield letters[index] if index < 26 else letters[index // 26 - 1] + letters[index % 26]


def _all_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _deal_cores(count: int, each: int) -> list[list[int]]:
    cores = _all_cores()
    if not each:
        return [cores] * count
    return [sorted({cores[(node * each + k) % len(cores)] for k in range(each)}) for node in range(count)]


def _write_shared(folder: Path, names: Sequence[str], addresses: Sequence[str]) -> None:
    """Keys, name service, ssh and sshd configuration: the same files for all nodes, host keys of their own."""
    for key in ("id", *(f"{name}.hostkey" for name in names)):
        subprocess.run(
            [_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key)],
            check=True,
            stdin=subprocess.DEVNULL,
        )
    hosts = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in zip(names, addresses, strict=True))]
    (folder / "hosts").write_text("\n".join(hosts) + "\n")
    known = []
    for name, address in zip(names, addresses, strict=True):
        kind, key, *_ = (folder / f"{name}.hostkey.pub").read_text().split()
        known.append(f"{name},{address} {kind} {key}\n")
    (folder / "known_hosts").write_text("".join(known))
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/id\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  StrictHostKeyChecking yes\n  LogLevel ERROR\n"
        "  KexAlgorithms curve25519-sha256\n"  # the cheapest: 64 logins at once share this machine's cores
    )
    (folder / "empty").touch()
    for name in names:
        (folder / f"{name}.hostname").write_text(f"{name}\n")
        (folder / f"{name}.sshd_config").write_text(
            f"HostKey {folder}/{name}.hostkey\nAuthorizedKeysFile {folder}/id.pub\nPidFile none\nStrictModes no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
            f"UseDNS no\nMaxStartups 1000\nMaxSessions 1000\nPrintMotd no\nPrintLastLog no\nLogLevel ERROR\n"
        )
    # sshd without PAM refuses an account that is locked ("!"), as root is on many systems: "*" only bars passwords.
    with contextlib.suppress(OSError):
        shadow = re.sub(r"^root:!+[^:]*:", "root:*:", Path("/etc/shadow").read_text(), flags=re.MULTILINE)
        (folder / "shadow").touch(mode=0o600)
        (folder / "shadow").write_text(shadow)


_LOGIN_SCRIPTS = (".bashrc", ".bash_profile", ".bash_login", ".profile", ".zshenv", ".zshrc")


def _mounts(folder: Path, name: str) -> list[tuple[str, str]]:
    pairs = [
        (f"{folder}/hosts", "/etc/hosts"),
        (f"{folder}/{name}.hostname", "/etc/hostname"),
        (f"{folder}/ssh_config", "/etc/ssh/ssh_config"),
        (f"{folder}/shadow", "/etc/shadow"),
        # The account's login scripts are not run: they may be slow, and write into the home that all nodes share.
        *((f"{folder}/empty", f"{pwd.getpwuid(0).pw_dir}/{script}") for script in _LOGIN_SCRIPTS),
    ]
    return [pair for pair in pairs if Path(pair[0]).exists()]


def _owner_pipe() -> int:
    """Read end of a pipe whose write end this process keeps open, inherited by nobody, until it ends."""
    read, write = os.pipe()
    os.set_inheritable(write, False)
    _owned.append(write)
    return read


_owned: list[int] = []


def _start(
    folder: Path,
    name: str,
    address: str,
    cores: Sequence[int],
    mounts: Sequence[tuple[str, str]],
    *,
    sshd: str,
    owner: int | None,
) -> Node:
    spec = {
        "name": name,
        "folder": str(folder),
        "cores": list(cores),
        "mounts": list(mounts),
        "empty": [str(Path(pwd.getpwuid(0).pw_dir) / ".ssh")] if sshd else [],
        "sshd": sshd,
        "sshd_config": f"{folder}/{name}.sshd_config",
        "tied": owner is not None,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(spec))
    done = subprocess.run(
        [sys.executable, "-I", "-S", init.__file__, str(path)],
        stdin=subprocess.DEVNULL if owner is None else owner,
        stdout=subprocess.PIPE,
        stderr=(log := (folder / f"{name}.log").open("wb")),
        env={"PATH": _PATH, "LANG": "C.UTF-8"},
        timeout=_READY_S,
        start_new_session=True,
    )
    log.close()
    if done.returncode:
        raise NodesError(f"node '{name}' did not start: {_last_line(folder / f'{name}.log')}")
    pid = int(done.stdout)
    node = Node(name=name, address=address, cores=tuple(cores), pid=pid, started=start_time(pid))
    (folder / f"{name}.pid").write_text(json.dumps(asdict(node)))
    _wait_state(folder, [node], "ready")
    return node


def _wait_state(folder: Path, nodes: Sequence[Node], wanted: str) -> None:
    deadline = time.monotonic() + _READY_S
    for node in nodes:
        while (state := _read(folder / f"{node.name}.state")) != wanted:
            if state.startswith("failed") or not node.alive:
                raise NodesError(
                    f"node '{node.name}' did not start: {state[7:] or _last_line(folder / f'{node.name}.log')}"
                )
            if time.monotonic() > deadline:
                raise NodesError(
                    f"node '{node.name}' was not {wanted} within {_READY_S:g} s: see {folder}/{node.name}.log"
                )
            time.sleep(0.005)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _last_line(path: Path) -> str:
    return (_read(path).strip().splitlines() or ["no message"])[-1]


def _save(cluster: Cluster) -> None:
    path = cluster.folder / "set.json"
    path.with_suffix(".new").write_text(json.dumps(asdict(cluster)))
    path.with_suffix(".new").replace(path)


def _load(name: str) -> Cluster | None:
    text = _read(STATE / name / "set.json")
    if not text:
        return None
    values = json.loads(text)
    return Cluster(**{**values, "nodes": tuple(_node(item) for item in values["nodes"]), "hub": _node(values["hub"])})


def _node(values: Mapping[str, object]) -> Node:
    return Node(**{**values, "cores": tuple(values["cores"])})  # type: ignore[arg-type]


def _recorded(folder: Path) -> Iterator[Node]:
    """Every node that was ever started in the set's folder, the hub too, also if `up` did not get to its end."""
    for path in sorted(folder.glob("*.pid")):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            yield _node(json.loads(_read(path)))


def _end(nodes: Sequence[Node]) -> None:
    for node in nodes:
        if node.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGKILL)
    _wait_gone(nodes)


def _wait_gone(nodes: Sequence[Node]) -> None:
    """The kernel ends a node's processes before its first one is gone."""
    deadline = time.monotonic() + 10.0
    while any(node.alive for node in nodes):
        if time.monotonic() > deadline:
            raise NodesError(f"nodes {', '.join(node.name for node in nodes if node.alive)} do not end: see dmesg")
        time.sleep(0.01)


def _nsenter(node: Node, *spaces: str) -> list[str]:
    return ["nsenter", "-t", str(node.pid), *(f"--{space}" for space in spaces), "--"]


def _members(node: Node) -> list[int]:
    """Host-side ids of the processes in the node's process-id namespace."""
    try:
        space = os.readlink(f"/proc/{node.pid}/ns/pid")
    except OSError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/pid") == space:
                    found.append(int(entry))
    return sorted(found)


def _command(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/comm")).strip()
