"""Run inside node a by test_launchers: ``launch_on_node.py LAUNCHER HOSTS SECONDS WORKER_ARG...``.

Supervises the stand-in worker below on the nodes and prints the Outcome as one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path


def worker() -> None:
    """Says who it is, then does what its last argument says."""
    from backends.process.rank import detect
    from harness.protocol.console import write_line
    from mpi import private

    inherited = "HF_TOKEN" in os.environ
    private.take()
    facts = detect()
    say = [facts.rank, facts.world_size, facts.local_rank, facts.local_size, facts.hostname, sys.argv[2:]]
    write_line("WORKER " + json.dumps([*say, os.environ["HARNESS_NOTE"], os.environ["OMP_NUM_THREADS"]]), sys.stdout)
    if token := os.environ.get("HF_TOKEN"):
        digest = hashlib.sha256(token.encode()).hexdigest()[:16]
        write_line(f"TOKEN {facts.rank} {'inherited' if inherited else 'taken'} {digest}", sys.stdout)
    action = sys.argv[-1]
    if action == "shortly":
        time.sleep(1.5)
    if action == "wait" or (action in ("kill", "raise") and facts.rank == 0):
        time.sleep(300)
    if action == "kill":
        os.kill(os.getpid(), 9)
    if action == "raise":
        raise ValueError("bad tile")


def main() -> None:
    from mpi import hostfile, network
    from mpi.launch import command, missing_program
    from mpi.process import supervise

    launcher, text, seconds, *arguments = sys.argv[1:]
    hosts = hostfile.parse_list(text)
    net = network.find([host.name for host in hosts])
    with tempfile.TemporaryDirectory() as scratch:
        launch = command(
            launcher,
            [sys.executable, __file__, "--worker", *arguments],
            hosts,
            scratch=Path(scratch) / "job",
            network=net,
            master_port=network.free_port(net.address),
            env={"HARNESS_NOTE": "two 'words' $x", "PYTHONPATH": str(Path.cwd())},
        )
        if missing := missing_program(launch):
            print(json.dumps({"missing": missing}))
            return
        outcome = supervise(launch, log_path=Path(scratch) / "log.txt", timeout=float(seconds))
        print(json.dumps({**asdict(outcome), "log": (Path(scratch) / "log.txt").read_text(), "tag": launch.tag}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    worker() if sys.argv[1] == "--worker" else main()
