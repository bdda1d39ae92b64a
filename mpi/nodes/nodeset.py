"""A set of virtual nodes that is there: running commands in it, looking at it, breaking it on purpose."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mpi.nodes import init, link
from mpi.nodes.identity import program
from mpi.nodes.processes import end_entered, entrances, in_namespace_of, kill_all, send
from mpi.nodes.processes import program as program_of
from mpi.nodes.state import SET, Node, NodesError, folder_of, read

INTERFACE = "net0"  # not eth0, so that whoever assumes eth0 is found out


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
        return folder_of(self.name)

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
            raise NodesError(f"node '{name}' is off: harness cluster nodes down --name {self.name}, then up again")
        cores = ",".join(map(str, node.cores))
        inside = ["env", "-C", str(Path(cwd or ".").absolute()), *command]
        return ["taskset", "-c", cores, *_nsenter(node.pid, "net", "uts", "mount", "pid", "ipc"), *inside]

    def run(self, name: str, command: Sequence[str], *, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs `command` in the node; output as text. After `timeout` seconds it is ended, with all that it has
        started, and subprocess.TimeoutExpired raised."""
        argv = self.argv(name, command)
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                out, errors = process.communicate(timeout=timeout)
            except BaseException:
                end_entered(process, grace=0.0)
                raise
        return subprocess.CompletedProcess(argv, process.returncode, out, errors)

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
        return [pid for pid in in_namespace_of(node.pid) if pid != node.pid and not _is_sshd(pid)]

    def sshd(self, name: str) -> list[int]:
        """Host-side ids of the node's sshd processes."""
        return [pid for pid in in_namespace_of(self.node(name).pid) if _is_sshd(pid)]

    def end_processes(self) -> None:
        """Ends at once what runs in any of the nodes, but for their first processes and sshd. Raises NodesError."""
        if left := kill_all(lambda: [pid for node in self.nodes for pid in self.processes(node.name)]):
            raise NodesError(f"set '{self.name}': processes {', '.join(map(str, left))} do not end: see dmesg")

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
        kill([node])

    def stop_sshd(self, name: str) -> None:
        """Ends the node's sshd and its sessions: connections are refused."""
        if left := kill_all(lambda: self.sshd(name)):
            raise NodesError(f"node '{name}': sshd does not end (processes {left})")

    def start_sshd(self, name: str) -> None:
        """Starts it again."""
        done = self.run(name, [program("sshd"), "-f", str(self.folder / f"{name}.sshd_config")])
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
        save(changed)
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


def save(cluster: Cluster) -> None:
    """Writes the set down, whole or not at all."""
    path = cluster.folder / SET
    path.with_suffix(".new").write_text(json.dumps(asdict(cluster)))
    path.with_suffix(".new").replace(path)


def find(name: str) -> Cluster | None:
    """The set called `name`, alive or not; None where there is none. Raises NodesError for what is no name."""
    text = read(folder_of(name) / SET)
    if not text:
        return None
    values = json.loads(text)
    nodes = tuple(Node.from_dict(item) for item in values["nodes"])
    return Cluster(**{**values, "nodes": nodes, "hub": Node.from_dict(values["hub"])})


def kill(nodes: Sequence[Node]) -> None:
    """Ends nodes at once: the kernel ends all of a node's processes before its first one is gone. Raises NodesError
    where it does not."""
    alive = [node for node in nodes if node.alive]
    # nsenter stops itself when its command is stopped, and then never takes note that the command has ended, for which
    # the kernel waits.
    stopped = [pid for node in alive for pid in entrances(node.pid)]
    send((node.pid for node in alive), signal.SIGKILL)
    send(stopped, signal.SIGCONT)
    deadline = time.monotonic() + 10.0
    while any(node.alive for node in nodes):
        if time.monotonic() > deadline:
            raise NodesError(f"nodes {', '.join(node.name for node in nodes if node.alive)} do not end: see dmesg")
        time.sleep(0.01)


def _nsenter(pid: int, *spaces: str) -> list[str]:
    return ["nsenter", "-t", str(pid), *(f"--{space}" for space in spaces), "--"]


def _is_sshd(pid: int) -> bool:
    return program_of(pid).startswith("sshd")  # and sshd-session, as its newer versions call their sessions
