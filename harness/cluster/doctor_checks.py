"""What the nodes say, judged: pure functions from reports to diagnoses, each with its remedy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

PACKAGES = ("torch", "deepspeed", "horovod", "mpi4py", "transformers", "numpy")
ENGINE_PACKAGES = {"deepspeed": ("deepspeed",), "horovod": ("horovod",)}
MAX_SKEW_S = 2.0
MIN_OPEN_FILES = 1024


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Something that is wrong. level: ``fail`` (a job would break), ``warn`` (it may). node: host name, or several
    joined by ``, ``."""

    node: str
    check: str
    level: str
    problem: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """One node's answers. trouble: what ssh said where there is no connection. skew_s: its clock minus ours."""

    host: str
    slots: int
    trouble: str = ""
    noise: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    skew_s: float = 0.0
    skew_error_s: float = 0.0

    def diagnosis(self, check: str, problem: str, remedy: str, level: str = "fail") -> Diagnosis:
        """Something that is wrong with this node. check: a key of CHECKS."""
        return Diagnosis(node=self.host, check=check, level=level, problem=problem, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the job needs. Paths and hashes are those of this machine, which every node must have alike."""

    here: Mapping[str, Any]
    python: str
    cwd: str
    data: str
    engines: Sequence[str] = ()
    min_disk_mib: int = 1024
    min_shared_mib: int = 64
    expect_bytes_per_s: float = 0.0


# -- each check: what it is called, in the order of the table
CHECKS = {
    "ssh": "reachable over ssh, host key known, key accepted",
    "key modes": "permissions of ~/.ssh and the keys",
    "login": "the login shell prints nothing",
    "python": "the same Python at the same path",
    "packages": "the same torch, engines, NCCL and MPI",
    "name": "a host name of its own",
    "user": "the same user and paths",
    "code": "the same source files",
    "data": "the same data",
    "disk": "room to write, in temporary folders too",
    "memory": "shared memory and main memory",
    "clock": "clocks agree",
    "ports": "ports free and reachable",
    "network": "names, addresses and interfaces agree",
    "link": "measured bandwidth between neighbours",
    "gpu": "GPUs alike and healthy",
    "slots": "slots do not exceed the cores or GPUs",
    "leftovers": "no rests of an earlier job",
}


def judge(reports: Sequence[Report], links: Sequence[Mapping[str, Any]], wanted: Wanted) -> list[Diagnosis]:
    """Every diagnosis, in the order of CHECKS, then of the hosts."""
    reached = [report for report in reports if report.facts]
    found = [*_unreached(reports, wanted)]
    for report in reached:
        found += _node(report, wanted)
    found += _names(reached)
    found += _network(reached)
    found += _gpus(reached)
    found += _links(reports, links, wanted)
    order = list(CHECKS)
    hosts = [report.host for report in reports]
    return sorted(found, key=lambda one: (order.index(one.check), hosts.index(one.node) if one.node in hosts else -1))


# -- ssh -----------------------------------------------------------------------------
_TROUBLES: tuple[tuple[str, str, str], ...] = (
    (r"UNPROTECTED PRIVATE KEY FILE", "key modes", "chmod 600 the private key on this machine"),
    (r"Bad owner or permissions on (\S+)", "key modes", "chmod 600 it on this machine"),
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", "ssh", "if it was set up anew: ssh-keygen -R {host}, then ssh-keyscan"),
    (r"Host key verification failed", "ssh", "ssh-keyscan {host} >> ~/.ssh/known_hosts, after comparing the key"),
    (r"Permission denied", "ssh", "ssh-copy-id {host}; there, ~ and ~/.ssh must not be writable by others"),
    (r"Connection refused", "ssh", "start sshd there, or put its Port for {host} into ~/.ssh/config"),
    (r"Could not resolve hostname", "ssh", "add {host} to DNS or /etc/hosts, or mend the hostfile"),
    (r"timed out|No route to host|Network is unreachable|no answer", "ssh", "check {host}, its network and firewall"),
    (r"No such file or directory|not found|cannot execute", "python", "install the environment at the same path there"),
)  # fmt: skip


def _unreached(reports: Iterable[Report], wanted: Wanted) -> Iterator[Diagnosis]:
    for report in reports:
        if report.facts:
            continue
        for pattern, check, remedy in _TROUBLES:
            if match := re.search(pattern, report.trouble):
                line = next(text for text in report.trouble.splitlines() if match.group(0) in text).strip(" @")
                if check == "python":
                    line = f"{wanted.python}: {line.rsplit(': ', 1)[-1]}"
                yield Diagnosis(
                    node=report.host, check=check, level="fail", problem=line, remedy=remedy.format(host=report.host)
                )
                break
        else:
            last = (report.trouble.splitlines() or ["no answer"])[-1]
            remedy = f"try by hand: ssh {report.host} {wanted.python} --version"
            check = "python" if "Error" in last else "ssh"
            yield Diagnosis(node=report.host, check=check, level="fail", problem=last, remedy=remedy)


# -- one node ------------------------------------------------------------------------
def _node(report: Report, wanted: Wanted) -> Iterator[Diagnosis]:
    yield from _account(report, wanted)
    yield from _copies(report, wanted)
    yield from _packages(report, wanted)
    yield from _disk(report, wanted)
    yield from _activity(report)


def _account(report: Report, wanted: Wanted) -> Iterator[Diagnosis]:
    """The login shell, the keys' permissions, the user."""
    facts, here = report.facts, wanted.here
    if report.noise:
        remedy = "move it behind an interactive-shell test in ~/.bashrc or ~/.profile"
        yield report.diagnosis("login", f"prints '{report.noise[0][:60]}'", remedy, "warn")
    for path, mode in facts["ssh_modes"].items():
        bits = int(mode, 8)
        private = "/.ssh/id" in path
        if bits & (0o077 if private else 0o022):
            wants = "600" if private else "go-w"
            yield report.diagnosis("key modes", f"{path} has mode {mode[2:]}", f"chmod {wants} {path} on {report.host}")
    if (facts["user"], facts["uid"]) != (here["user"], here["uid"]):
        problem = f"user {facts['user']} ({facts['uid']}), on this machine {here['user']} ({here['uid']})"
        level = "fail" if facts["user"] != here["user"] else "warn"
        yield report.diagnosis("user", problem, "use one account, or 'User' in ~/.ssh/config", level)


def _copies(report: Report, wanted: Wanted) -> Iterator[Diagnosis]:
    """What every node must have alike: Python, the project's files, the data."""
    facts, here = report.facts, wanted.here
    if facts["python"] != here["python"]:
        problem = f"{facts['python']}, on this machine {here['python']}"
        yield report.diagnosis("python", problem, f"install Python {here['python']} there")
    if not facts["cwd"]:
        yield report.diagnosis(
            "user", f"{wanted.cwd} is not there", "share the folder (NFS) or clone it to the same path"
        )
    elif facts["code"] != here["code"]:
        problem = f"hash {facts['code']}, on this machine {here['code']}"
        yield report.diagnosis("code", problem, f"git -C {wanted.cwd} pull, or copy the folder to {report.host} again")
    if wanted.data and facts["data"] != here["data"]:
        theirs = "none" if facts["data"] is None else f"{facts['data']['files']}"
        mine = 0 if here["data"] is None else here["data"]["files"]
        problem = f"{wanted.data}: {theirs} files, on this machine {mine}, or other names or sizes"
        yield report.diagnosis("data", problem, f"copy it to {report.host} again, or share it")


def _activity(report: Report) -> Iterator[Diagnosis]:
    """What the node is doing: its clock, ports that are taken, slots, processes of an earlier job."""
    facts = report.facts
    if abs(report.skew_s) - report.skew_error_s > MAX_SKEW_S:
        ahead = "ahead" if report.skew_s > 0 else "behind"
        problem = f"{abs(report.skew_s):.1f} s {ahead} of this machine"
        yield report.diagnosis("clock", problem, "start an NTP service (chrony) on every node")
    taken = [port for port, free in facts["ports"].items() if not free]
    if taken:
        problem = f"port {', '.join(taken)} is taken by another process"
        yield report.diagnosis("ports", problem, f"end it (ss -ltnp on {report.host}) or use another --port")
    units = "GPUs" if facts["gpus"] else "cores"
    count = len(facts["gpus"]) if facts["gpus"] else facts["cores"]
    if report.slots > count:
        problem = f"slots={report.slots}, {count} {units}"
        yield report.diagnosis("slots", problem, f"write slots={count} in the hostfile", "warn")
    if facts["leftovers"]:
        problem = f"{facts['leftovers']} processes of a job are running"
        yield report.diagnosis("leftovers", problem, "wait for that job, or end them with kill", "warn")


def _packages(report: Report, wanted: Wanted) -> Iterator[Diagnosis]:
    facts, here = report.facts, wanted.here
    needed = {name for engine in wanted.engines for name in ENGINE_PACKAGES.get(engine, ())} | {"torch"}
    for name in PACKAGES:
        mine, other = here["packages"][name], facts["packages"][name]
        if mine == other and (mine is not None or name not in needed):
            continue
        if other is None:
            yield report.diagnosis("packages", f"{name} is not installed", f"run 'make setup' on {report.host}")
        else:
            remedy = f"run 'make setup' on {report.host}, with the same constraints.txt"
            yield report.diagnosis("packages", f"{name} {other}, on this machine {mine}", remedy)
    for name, label in (("nccl", "NCCL"), ("mpi", "MPI")):
        if facts[name] != here[name]:
            problem = f"{label} {facts[name] or 'missing'}, on this machine {here[name] or 'none'}"
            yield report.diagnosis("packages", problem, f"install the same {label} on every node")


def _disk(report: Report, wanted: Wanted) -> Iterator[Diagnosis]:
    facts = report.facts
    for asked, folder in facts["folders"].items():
        path = folder["path"]
        if folder["error"]:
            remedy = f"free space or give write access, or use another than {asked}"
            yield report.diagnosis("disk", f"{path}: {folder['error']}", remedy)
        elif folder["free_mib"] < wanted.min_disk_mib:
            remedy = "free some, or use another folder"
            yield report.diagnosis(
                "disk", f"{path}: {folder['free_mib']} MiB free, {wanted.min_disk_mib} wanted", remedy
            )
        elif 0 < folder["free_files"] < 1000:
            yield report.diagnosis("disk", f"{path}: room for {folder['free_files']} more files", "remove files there")
    shared = facts["shared_memory"]
    if shared["free_mib"] < wanted.min_shared_mib:
        problem = f"/dev/shm has {shared['free_mib']} MiB free, {wanted.min_shared_mib} wanted"
        yield report.diagnosis(
            "memory", problem, "remove files in /dev/shm; in a container: --shm-size=1g or --ipc=host"
        )
    if 0 <= facts["memory_mib"] < 512:
        yield report.diagnosis(
            "memory", f"{facts['memory_mib']} MiB of memory free", "end other programs there", "warn"
        )
    if facts["open_files"] < MIN_OPEN_FILES:
        problem = f"at most {facts['open_files']} open files"
        yield report.diagnosis("memory", problem, "raise nofile in /etc/security/limits.conf", "warn")


# -- nodes together ------------------------------------------------------------------
def _names(reports: Sequence[Report]) -> Iterator[Diagnosis]:
    counts = Counter(report.facts["hostname"] for report in reports)
    for name, count in counts.items():
        if count > 1:
            nodes = ", ".join(report.host for report in reports if report.facts["hostname"] == name)
            problem = f"{count} nodes call themselves '{name}': Horovod and DeepSpeed take them for one"
            yield Diagnosis(
                node=nodes,
                check="name",
                level="fail",
                problem=problem,
                remedy="hostnamectl set-hostname, one name each",
            )


def _network(reports: Sequence[Report]) -> Iterator[Diagnosis]:
    if len(reports) < 2:
        return
    for target in reports:
        seen = Counter(report.facts["addresses"].get(target.host) for report in reports if report is not target)
        common = seen.most_common(1)[0][0]
        for report in reports:
            address = report.facts["addresses"].get(target.host)
            problem = ""
            if address is None:
                problem = f"does not know the name '{target.host}'"
            elif address.startswith("127."):
                problem = f"'{target.host}' is {address} there, which no other node can reach"
            elif address != common and report is not target:
                problem = f"'{target.host}' is {address} there and {common} elsewhere"
            if problem:
                remedy = f"mend DNS or /etc/hosts on {report.host}"
                yield Diagnosis(node=report.host, check="network", level="fail", problem=problem, remedy=remedy)
    names = Counter(report.facts["interface"]["name"] for report in reports)
    if len(names) > 1:
        usual = names.most_common(1)[0][0]
        for report in reports:
            own = report.facts["interface"]["name"]
            if own != usual:
                problem = f"reaches the others by '{own or 'no interface'}', most by '{usual}'"
                remedy = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to a list of both, or rename it"
                yield Diagnosis(node=report.host, check="network", level="warn", problem=problem, remedy=remedy)


def _gpus(reports: Sequence[Report]) -> Iterator[Diagnosis]:
    kinds = Counter(_gpu_kind(report) for report in reports)
    for report in reports:
        gpus = report.facts["gpus"]
        for gpu in gpus or []:
            if "error" in gpu:
                remedy = f"nvidia-smi on {report.host}; reboot it or reload the driver"
                yield Diagnosis(node=report.host, check="gpu", level="fail", problem=str(gpu["error"]), remedy=remedy)
            elif gpu["ecc"].isdigit() and int(gpu["ecc"]):
                problem = f"GPU {gpu['index']}: {gpu['ecc']} uncorrected memory errors"
                remedy = "reset or replace it; leave it out meanwhile"
                yield Diagnosis(node=report.host, check="gpu", level="fail", problem=problem, remedy=remedy)
            elif gpu["used_mib"].isdigit() and int(gpu["used_mib"]) > 2048:
                problem = f"GPU {gpu['index']}: {gpu['used_mib']} MiB are in use"
                yield Diagnosis(
                    node=report.host, check="gpu", level="warn", problem=problem, remedy="wait for the other job"
                )
        if any("error" in gpu for gpu in gpus or []):
            continue
        if len(kinds) > 1 and _gpu_kind(report) != kinds.most_common(1)[0][0]:
            problem = f"{_gpu_kind(report)} where most have {kinds.most_common(1)[0][0]}"
            remedy = "run on nodes that are alike"
            yield Diagnosis(node=report.host, check="gpu", level="fail", problem=problem, remedy=remedy)


def _gpu_kind(report: Report) -> str:
    gpus = report.facts["gpus"] or []
    if not gpus:
        return "no GPU"
    return f"{len(gpus)} x {gpus[0].get('name', 'GPU')}, driver {gpus[0].get('driver', '?')}"


def _links(reports: Sequence[Report], links: Sequence[Mapping[str, Any]], wanted: Wanted) -> Iterator[Diagnosis]:
    """Links of the ring. One that does not connect is a closed port; a slow one stands out, or misses what was asked.

    Of a slow link's two nodes the one is named whose both links are slow, else both.
    """
    usual, floor = rate_limits(links, wanted)
    slow: list[Mapping[str, Any]] = []
    for link in links:
        pair = f"{reports[link['from']].host} -> {reports[link['to']].host}"
        if "error" in link:
            host = reports[link["to"]].host
            problem = f"{pair}, TCP port {link.get('port', '?')}: {link['error']}"
            remedy = f"open TCP ports 20000-32000 between the nodes in the firewall of {host}"
            yield Diagnosis(node=host, check="ports", level="fail", problem=problem, remedy=remedy)
        elif link["bytes_per_s"] < floor:
            slow.append(link)
    touched = Counter(end for link in slow for end in (link["from"], link["to"]))
    for link in slow:
        ends = [end for end in (link["from"], link["to"]) if touched[end] > 1] or [link["from"], link["to"]]
        pair = f"{reports[link['from']].host} -> {reports[link['to']].host}"
        expected = wanted.expect_bytes_per_s or usual
        problem = f"{pair}: {bits(link['bytes_per_s'])}, {bits(expected)} expected"
        remedy = "check cable, switch port and duplex (ethtool), and other traffic"
        yield Diagnosis(
            node=", ".join(reports[end].host for end in ends[:1] if len(ends) == 1) or pair.replace(" -> ", ", "),
            check="link",
            level="fail",
            problem=problem,
            remedy=remedy,
        )


def rate_limits(links: Sequence[Mapping[str, Any]], wanted: Wanted) -> tuple[float, float]:
    """Bytes per second of the usual link, and below which one is slow."""
    rates = [link["bytes_per_s"] for link in links if link.get("bytes_per_s")]
    usual = median(rates) if rates else 0.0
    return usual, max(wanted.expect_bytes_per_s * 0.7, usual * 0.5 if len(rates) > 2 else 0.0)


def bits(bytes_per_s: float) -> str:
    """Bytes per second as Gbit/s or Mbit/s."""
    value = bytes_per_s * 8
    return f"{value / 1e9:.2f} Gbit/s" if value >= 1e9 else f"{value / 1e6:.0f} Mbit/s"
