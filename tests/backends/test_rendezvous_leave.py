"""Leaving the process groups destroys none of their objects: gloo's destructor could wait for ever."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import torch, torch.distributed as dist
from backends.process.rank import detect
from backends.torch import rendezvous
rendezvous.join(detect(), torch.device("cpu"), 30.0)
groups = {dist.group.WORLD, dist.new_group([0])}
rendezvous.leave()
rendezvous.leave()
assert not dist.is_initialized()
assert groups <= set(rendezvous._left), (groups, rendezvous._left)
"""


def test_groups_outlive_their_leaving() -> None:
    """In a process of its own, as a group stays for the process's life."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
