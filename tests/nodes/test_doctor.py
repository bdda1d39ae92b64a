"""Faults are planted on real (virtual) nodes, one a node; one run of the doctor must find each, and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from mpi.launchers.base import JOB_TAG
from mpi.nodes import cluster
from mpi.nodes.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).resolve().parents[2]
SITE = Path(sysconfig.get_paths()["purelib"])
PORT = 29511
RATE = "50mbit"  # eight links at once must be a light load for two cores, or the machine is what is measured


def doctor(nodes: Cluster, hosts: str, *options: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "harness", "cluster", "doctor", "--hosts", hosts, "--json", *options]
    done = subprocess.run(nodes.argv("a", argv, cwd=ROOT), capture_output=True, text=True, timeout=240)
    assert done.stdout, done.stderr
    return {**json.loads(done.stdout), "exit": done.returncode}


def host_list(nodes: Cluster) -> str:
    return ",".join(f"{node.name}:1" for node in nodes.nodes)


def distribution(name: str) -> Path:
    return next(SITE.glob(f"{name}-*.dist-info"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class Plants:
    """Each method breaks one node and returns (check, level, words) that the finding must have."""

    def __init__(self, nodes: Cluster, folder: Path) -> None:
        self.nodes, self.folder = nodes, folder
        self.kept: list[subprocess.Popen[bytes]] = []
        self.results, self.data = folder / "results", folder / "data"
        self.results.mkdir()
        write(self.data / "x" / "one.png", "123")
        self.empty = folder / "empty"
        self.empty.mkdir()

    def no_python(self, node: str) -> tuple[str, str, str]:
        self.nodes.mount(node, self.empty, Path(sys.executable).parent)
        return "python", "fail", "No such file"

    def no_engine(self, node: str) -> tuple[str, str, str]:
        self.nodes.mount(node, self.empty, distribution("deepspeed"))
        return "packages", "fail", "deepspeed is not installed"

    def other_version(self, node: str) -> tuple[str, str, str]:
        metadata = distribution("numpy") / "METADATA"
        other = write(self.folder / "METADATA", "Metadata-Version: 2.1\nName: numpy\nVersion: 1.0.7\n")
        self.nodes.mount(node, other, metadata)
        return "packages", "fail", "numpy 1.0.7, on this machine"

    def full_disk(self, node: str) -> tuple[str, str, str]:
        self.nodes.mount_small_disk(node, self.results, 4)
        self.nodes.run(node, ["sh", "-c", f"cat /dev/zero > {self.results}/fill"])
        return "disk", "fail", "No space left on device"

    def little_disk(self, node: str) -> tuple[str, str, str]:
        self.nodes.mount_small_disk(node, self.results, 512)
        return "disk", "fail", "0 MiB free, 1 wanted"

    def key_modes(self, node: str) -> tuple[str, str, str]:
        home = Path.home() / ".ssh"
        if not home.is_dir():
            pytest.skip("the account has no ~/.ssh to mount over")
        key = write(self.folder / "key-modes" / "id_ed25519", (self.nodes.folder / "id").read_text())
        key.parent.chmod(0o700)
        key.chmod(0o644)
        self.nodes.mount(node, key.parent, home)
        return "key modes", "fail", "id_ed25519 has mode 644"

    def firewall(self, node: str) -> tuple[str, str, str]:
        self.nodes.close_ports(node)
        return "ports", "fail", "timed out"

    def clock(self, node: str) -> tuple[str, str, str]:
        # A clock of its own cannot be had in a namespace: that node's Python reads it 300 s slow.
        slow = "setattr(time, '_real', time.time), setattr(time, 'time', lambda t=time: t._real() - 300.0)"
        hook = write(self.folder / "skew.pth", f"import time; hasattr(time, '_real') or [{slow}]\n")
        self.nodes.mount(node, hook, SITE / "distutils-precedence.pth")
        return "clock", "fail", r"(29[5-9]\.\d|300\.\d) s behind"  # the way there counts: two dozen nodes log in

    def other_code(self, node: str) -> tuple[str, str, str]:
        changed = write(self.folder / "hostfile.py", (ROOT / "mpi" / "hostfile.py").read_text() + "# changed\n")
        self.nodes.mount(node, changed, ROOT / "mpi" / "hostfile.py")
        return "code", "fail", ", on this machine "

    def other_data(self, node: str) -> tuple[str, str, str]:
        self.nodes.mount(node, self.empty, self.data / "x")
        return "data", "fail", "0 files, on this machine 1"

    def sshd_down(self, node: str) -> tuple[str, str, str]:
        self.nodes.stop_sshd(node)
        return "ssh", "fail", "Connection refused"

    def unplugged(self, node: str) -> tuple[str, str, str]:
        self.nodes.cut(node)
        return "ssh", "fail", "timed out|No route"

    def unknown_host_key(self, node: str) -> tuple[str, str, str]:
        known = self.nodes.folder / "known_hosts"
        lines = [line for line in known.read_text().splitlines() if not line.startswith(f"{node},")]
        self.nodes.mount("a", write(self.folder / "known_hosts", "\n".join(lines) + "\n"), known)
        return "ssh", "fail", "Host key verification failed"

    def key_refused(self, node: str) -> tuple[str, str, str]:
        self.nodes.mount(node, write(self.folder / "nobody.pub", ""), self.nodes.folder / "id.pub")
        return "ssh", "fail", "Permission denied"

    def same_name(self, node: str) -> tuple[str, str, str]:
        self.nodes.run(node, ["hostname", "a"])
        return "name", "fail", "2 nodes call themselves 'a'"

    def loopback_name(self, node: str) -> tuple[str, str, str]:
        hosts = (self.nodes.folder / "hosts").read_text()
        own = next(line for line in hosts.splitlines() if line.endswith(f" {node}"))
        self.nodes.mount(node, write(self.folder / "hosts", hosts.replace(own, f"127.0.1.1 {node}")), "/etc/hosts")
        return "network", "fail", "is 127.0.1.1 there"

    def taken_port(self, node: str) -> tuple[str, str, str]:
        code = f"import socket, time; s = socket.create_server(('', {PORT})); print(); time.sleep(300)"
        self._keep(self.nodes.argv(node, [sys.executable, "-u", "-c", code]))
        return "ports", "fail", f"port {PORT} is taken"

    def slow_link(self, node: str) -> tuple[str, str, str]:
        self.nodes.limit(node, "5mbit")
        return "link", "fail", "Mbit/s, 50 Mbit/s expected"

    def little_shared_memory(self, node: str) -> tuple[str, str, str]:
        self.nodes.mount_small_disk(node, "/dev/shm", 16 * 1024)
        return "memory", "fail", "/dev/shm has 16 MiB free"

    def leftovers(self, node: str) -> tuple[str, str, str]:
        self._keep(self.nodes.argv(node, [f"{JOB_TAG}=old", "sh", "-c", "echo; sleep 300"]))
        return "leftovers", "warn", "processes of a job"

    def noisy_login(self, node: str) -> tuple[str, str, str]:
        if not Path("/etc/bash.bashrc").exists():
            pytest.skip("no /etc/bash.bashrc")
        self.nodes.mount(node, write(self.folder / "bashrc", "echo welcome aboard\n"), "/etc/bash.bashrc")
        return "login", "warn", "welcome aboard"

    def _keep(self, argv: list[str]) -> None:
        """Starts it and waits for its first line."""
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdout is not None
        process.stdout.readline()
        self.kept.append(process)


FAULTS = [name for name in vars(Plants) if not name.startswith("_")]


@pytest.fixture(scope="module")
def examined(make_nodes, tmp_path_factory):
    """(node of each fault, what must be found, the doctor's answer): one run for all faults."""
    folder = tmp_path_factory.mktemp("plants")
    nodes = make_nodes(len(FAULTS) + 3, rate=RATE)
    plants = Plants(nodes, folder)
    names = [node.name for node in nodes.nodes]
    where = dict(zip(FAULTS, names[1:], strict=False))
    expected = {}
    for fault in FAULTS:
        try:
            expected[fault] = getattr(plants, fault)(where[fault])
        except pytest.skip.Exception:
            where.pop(fault)
    options = ["--data", str(plants.data), "--results", str(plants.results), "--port", str(PORT), "--min-disk", "1"]
    answer = doctor(nodes, host_list(nodes), *options, "--backends", "deepspeed", "--expect-rate", RATE)
    yield where, expected, answer
    for process in plants.kept:
        process.kill()


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found_on_its_node_with_a_remedy(examined, fault):
    where, expected, answer = examined
    if fault not in where:
        pytest.skip("cannot be planted on this machine")
    check, level, words = expected[fault]
    own = [one for one in answer["findings"] if where[fault] in one["node"].split(", ")]
    hit = [one for one in own if one["check"] == check and one["level"] == level and re.search(words, one["problem"])]
    assert hit, own
    assert all(one["remedy"] and "\n" not in one["problem"] for one in hit)


def test_nothing_else_is_found(examined):
    where, expected, answer = examined
    planted = {where[fault]: expected[fault][0] for fault in where}
    beside = [
        one
        for one in answer["findings"]
        if not any(planted.get(node) == one["check"] for node in one["node"].split(", "))
    ]
    assert beside == []
    assert answer["exit"] == 1


def test_a_healthy_cluster_may_start(make_nodes, tmp_path):
    nodes = make_nodes(3, rate=RATE)
    answer = doctor(nodes, host_list(nodes), "--results", str(tmp_path), "--expect-rate", RATE, "--min-disk", "1")
    assert answer["findings"] == []
    assert answer["exit"] == 0
    assert len(answer["links"]) == 3
    for link in answer["links"]:
        assert 0.65 < link["bytes_per_s"] * 8 / 50e6 < 1.1
        assert 0 < link["round_trip_s"] < 0.05
    missing = doctor(nodes, "a:1,b:1", "--results", str(tmp_path), "--expect-rate", "1gbit", "--no-links")
    assert missing["links"] == []


def test_64_nodes_are_asked_together(make_nodes, tmp_path):
    nodes = make_nodes(64)
    answer = doctor(nodes, host_list(nodes), "--results", str(tmp_path), "--min-disk", "1")
    facts = [one["facts"] for one in answer["nodes"] if one["facts"]]
    assert len(facts) == 64
    # Together: what the nodes took, all added, is a multiple of the time in which they did it.
    took = sum(each["time"] - each["asked"] for each in facts)
    assert took > 3 * (max(each["time"] for each in facts) - min(each["asked"] for each in facts))
    cluster.down(nodes.name)


def test_this_machine_alone_needs_no_ssh(tmp_path):
    argv = [
        sys.executable,
        "-m",
        "harness",
        "cluster",
        "doctor",
        "--hosts",
        "localhost:1",
        "--json",
        "--results",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*argv, "--min-disk", "1"], capture_output=True, text=True, timeout=60, cwd=ROOT, env=os.environ
    )
    answer = json.loads(done.stdout)
    assert answer["nodes"][0]["facts"]["hostname"]
    assert answer["ok"] or answer["findings"]
