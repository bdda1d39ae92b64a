"""The hosts of a job: which hostfile, which of its hosts, how many workers on each, and what then stays idle."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.common.formatting import plural
from harness.common.paths import PROJECT
from harness.job.declaration import Job
from mpi import hostfile


def hosts_of(job: Job) -> tuple[hostfile.Host, ...]:
    """The hosts of the job: this machine for one node without a hostfile, else the hostfile's first ones."""
    if job.nodes == 1 and not job.hostfile:
        return hostfile.local(job.slots)
    return hostfile.take(hostfile.parse_file(find_hostfile(job.hostfile)), job.nodes, job.slots)


def find_hostfile(given: str) -> Path:
    """The hostfile that was named, else ./hostfile, else the repository's."""
    candidates = [Path(given)] if given else [Path("hostfile"), PROJECT / "hostfile"]
    return next((path for path in candidates if path.exists()), candidates[0])


def slots_from_hostfile(nodes: int, given: str) -> int:
    """Workers a host where the user did not say: the fewest slots among the first `nodes` hosts. Says on stderr what
    stays idle where the hosts differ."""
    hosts = hostfile.parse_file(find_hostfile(given))
    slots = min(host.slots for host in hosts[:nodes])
    if note := hostfile.idle(hosts, nodes, slots):
        print(f"note: {note}", file=sys.stderr)
    return slots


def say_idle(given: str, nodes: int | None, slots: int | None) -> None:
    """Says on stderr what of the hostfile `given` stays idle because --nodes or --slots were not said (None): their
    defaults are one."""
    hosts = hostfile.parse_file(find_hostfile(given))
    more, first = len(hosts) - 1, hosts[0]
    if nodes is None and more:
        print(f"note: {plural(more, 'more host')} of {given} can be used: add --nodes {more + 1}", file=sys.stderr)
    elif slots is None and first.slots > 1:
        print(f"note: 1 of {first.slots} slots of {first.name} is used: add --slots {first.slots}", file=sys.stderr)
