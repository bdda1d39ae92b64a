"""Whether a job left a process on any virtual node."""

from __future__ import annotations

import time
from pathlib import Path

from mpi.nodes.cluster import Cluster


def assert_nothing_left(nodes: Cluster, limit: float = 10.0) -> None:
    """Within `limit` seconds: sshd's session processes go a moment after their client; a guard that notices silence
    alone takes 20 s."""
    deadline = time.monotonic() + limit
    while any(nodes.processes(node.name) for node in nodes.nodes) and time.monotonic() < deadline:
        time.sleep(0.05)
    for node in nodes.nodes:
        left = [Path(f"/proc/{pid}/cmdline").read_bytes()[:200] for pid in nodes.processes(node.name)]
        assert left == [], f"on node {node.name}"
