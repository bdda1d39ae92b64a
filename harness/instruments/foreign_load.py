"""Work on a machine that is not the job's: it slows what is measured, and no figure of the job itself shows it.

Foreign is the processor time of all processes on the cores that the job may use, less that of the job's own processes:
other programs, and other containers. What the hypervisor took (steal) is counted apart. The job's own are its ranks,
all that they have started, and the launchers and supervisors above them. Interrupts and the kernel's threads are
neither: most of them work for whoever sends the most data. Linux counts in ticks of 10 ms (/proc/stat, /proc/PID/stat,
man 5 proc), so a window should last seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.common.formatting import joined, plural

NOTED = 0.05  # share of a host's usable cores above which foreign load is said beside a figure
_PROC = Path("/proc")
_BUSY, _STEAL = (1, 2, 3), 8  # fields of a line of /proc/stat: user, nice, system (idle iowait irq softirq), steal
_KERNEL = "kthreadd"  # the parent of the kernel's threads


@dataclass(frozen=True)
class _Process:
    """born: its start, ticks since the machine's. ticks: that it and the children that it has waited for have used.
    own: without those children."""

    name: str
    parent: int
    born: int
    own: int
    ticks: int


def own_processes(roots: Collection[int], proc: Path = _PROC) -> tuple[set[int], set[int]]:
    """(the processes of `roots` and all that they have started, the processes above them)."""
    return _family(_processes(proc), roots)


class HostLoad:
    """Who kept a machine's cores busy since it was made.

    roots: process ids of the job's ranks here, and of what else belongs to it. cores: numbers of the cores that they
    may use (None: those of this process). proc: root of the process file system.
    """

    def __init__(self, roots: Collection[int], cores: Collection[int] | None = None, proc: Path = _PROC) -> None:
        self._roots, self._proc = tuple(roots), proc
        self.cores = frozenset(os.sched_getaffinity(0) if cores is None else cores)
        self._known: dict[int, _Process] = {}
        self._above: dict[int, _Process] = {}
        self._busy, self._steal = self._cores_ticks()
        self._own_ticks()
        self._began = self._last = time.monotonic()
        self._foreign_s = self._steal_s = self._worst = 0.0
        self._blind = False

    def read(self) -> dict[str, float] | None:
        """Since the last call: cores kept busy by foreign programs (``foreign_cores``) and taken by the hypervisor
        (``steal_cores``), means over that time. None where this machine hides its processor time (some sandboxes), or
        no time has passed."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        busy, steal = self._cores_ticks()
        own = self._own_ticks()
        busy_s, steal_s = (busy - self._busy) / _TICKS, (steal - self._steal) / _TICKS
        self._busy, self._steal = busy, steal
        if own / _TICKS > 2 * busy_s + 1.0:  # a counter that stands still while we work
            self._blind = True
        if self._blind or passed <= 0:
            return None
        foreign_s = max(0.0, busy_s - own / _TICKS)
        self._foreign_s, self._steal_s = self._foreign_s + foreign_s, self._steal_s + max(0.0, steal_s)
        if passed >= 1.0:  # shorter ones are mostly the counters' steps
            self._worst = max(self._worst, (foreign_s + steal_s) / passed)
        return {"foreign_cores": foreign_s / passed, "steal_cores": max(0.0, steal_s) / passed}

    def total(self) -> dict[str, float] | None:
        """The same from the beginning to the last `read`, with ``cores`` (those counted) and ``worst_cores``, foreign
        and stolen together in the worst window between two readings. None where it is not known."""
        wall = self._last - self._began
        if self._blind or wall <= 0:
            return None
        means = {"foreign_cores": self._foreign_s / wall, "steal_cores": self._steal_s / wall}
        return {"cores": float(len(self.cores)), **means, "worst_cores": max(self._worst, sum(means.values()))}

    def own_pids(self) -> set[int]:
        """The job's processes here, as of the last reading."""
        return set(self._known) | set(self._above)

    def _cores_ticks(self) -> tuple[int, int]:
        """(busy, stolen) ticks of the counted cores since the machine's start."""
        busy = steal = 0
        for line in (self._proc / "stat").read_text().splitlines():
            fields = line.split()
            if line.startswith("cpu") and fields[0][3:].isdigit() and int(fields[0][3:]) in self.cores:
                busy += sum(int(fields[index]) for index in _BUSY)
                steal += int(fields[_STEAL]) if len(fields) > _STEAL else 0
        return busy, steal

    def _own_ticks(self) -> int:
        """Ticks that the job's processes have used since the last call.

        A process that has ended meanwhile is in the ticks of the one that waited for it, with its whole life: what was
        counted of it before is taken off. Launchers and supervisors count without their ended children, among which
        may be other programs of the same shell."""
        table = _processes(self._proc)
        kernel = {pid for pid, process in table.items() if process.name == _KERNEL and process.parent == 0}
        below, above = _family(table, {*self._roots, *kernel})
        below |= {pid for pid, old in self._known.items() if pid in table and table[pid].born == old.born}
        used = 0
        for pid in below:
            before = self._known.get(pid)
            known = before is not None and before.born == table[pid].born
            used += table[pid].ticks - (before.ticks if known and before is not None else 0)
        for pid, before in self._known.items():
            if pid not in below and before.parent in below:
                used -= before.ticks
        for pid in above:
            if (before := self._above.get(pid)) is not None:
                used += table[pid].own - before.own
        self._known = {pid: table[pid] for pid in below}
        self._above = {pid: table[pid] for pid in above}
        return max(0, used)


def said(hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each host of a result's ``hosts`` on which other work ran beside the job, for readers."""
    lines = []
    for host in hosts:
        load = host.get("load") or {}
        cores, foreign, steal = (load.get(key) or 0.0 for key in ("cores", "foreign_cores", "steal_cores"))
        parts = []
        if foreign > NOTED * cores:
            parts.append(f"other programs kept {foreign:.2f} of {cores:.0f} cores busy while it trained")
        if steal > NOTED * cores:
            parts.append(f"the hypervisor took {steal:.2f} of {cores:.0f} cores away from it")
        if others := host.get("gpu_processes"):
            names = joined([f"{other['name']} (process {other['pid']})" for other in others[:4]])
            parts.append(f"{plural(len(others), 'other process', 'other processes')} used its GPUs: {names}")
        lines += [f"{host.get('host')}: {part}: its times may be too long" for part in parts]
    return lines


_TICKS = os.sysconf("SC_CLK_TCK")


def _processes(proc: Path) -> dict[int, _Process]:
    """All processes that can be seen, by id."""
    found = {}
    for name in os.listdir(proc):
        if not name.isdigit():
            continue
        try:
            text = (proc / name / "stat").read_text(errors="replace")
        except OSError:  # it has ended
            continue
        end = text.rindex(")")  # the name, in brackets, may hold anything
        fields = text[end + 2 :].split()
        used, reaped = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        found[int(name)] = _Process(
            name=text[text.index("(") + 1 : end],
            parent=int(fields[1]),
            born=int(fields[19]),
            own=used,
            ticks=used + reaped,
        )
    return found


def _family(table: Mapping[int, _Process], roots: Collection[int]) -> tuple[set[int], set[int]]:
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    below: set[int] = set()
    waiting = [root for root in roots if root in table]
    above: set[int] = set()
    for root in waiting:
        parent = table[root].parent
        while parent in table and parent not in above:
            above.add(parent)
            parent = table[parent].parent
    while waiting:
        pid = waiting.pop()
        if pid not in below:
            below.add(pid)
            waiting += children.get(pid, ())
    return below, above - below
