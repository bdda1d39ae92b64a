"""Run inside node a by test_elastic: ``elastic_on_node.py HOSTS FOLDER STEPS`` supervises the elastic worker."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from mpi import hostfile, network
from mpi.launch import command
from mpi.process import supervise

LIMIT_S = 20  # of a collective: by it the others learn that a node is cut off


def main() -> None:
    """Prints the Outcome as a line of JSON."""
    hosts = hostfile.parse_list(sys.argv[1])
    net = network.find([host.name for host in hosts])
    worker = [sys.executable, str(Path("tests/parallel/elastic.py").absolute()), sys.argv[2], sys.argv[3]]
    with tempfile.TemporaryDirectory() as scratch:
        launch = command(
            "horovodrun-elastic",
            worker,
            hosts,
            scratch=Path(scratch) / "job",
            network=net,
            operation_timeout=LIMIT_S,
            env={"ELASTIC_TIMEOUT_S": str(LIMIT_S)},
        )
        outcome = supervise(launch, log_path=Path(sys.argv[2]) / "log.txt", timeout=270)
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
