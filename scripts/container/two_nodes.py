"""Try a built root as a cluster: two nodes from one image, running both commands as a user types them.

    sudo .venv/bin/python scripts/container/two_nodes.py ROOT [--bind PATH]...

ROOT comes from scripts/rootfs.py build. Each virtual node (mpi/nodes) gets the root through an overlay of its own,
a mounted key pair and the image's entry point, so its ssh server on port 2222 is the image's, not this machine's.
Then, on node a:

    deepspeed --hostfile hostfile --no_local_rank harness/run.py --backend deepspeed ...
    horovodrun -np 2 -H a:1,b:1 python harness/run.py --backend horovod ...

Both must end with a record whose status is "ok". Everything made is taken away again, whatever happens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mpi.nodes import cluster as nodes

REPOSITORY = Path(__file__).resolve().parents[2]
INSIDE = "/opt/anomaly-distbench"
JOB = "--preset tiny --steps 10 --eval-samples 8"
COMMANDS = {
    "deepspeed": f"deepspeed --hostfile hostfile --no_local_rank harness/run.py --backend deepspeed {JOB}",
    "horovod": f"horovodrun -np 2 -H a:1,b:1 python harness/run.py --backend horovod {JOB}",
}
READY_S, COMMAND_S = 30, 300
GOOD = "ok"


@contextlib.contextmanager
def overlay(root: Path, folder: Path) -> Iterator[Path]:
    """A writable view of `root`: changes land in `folder`, which is thrown away."""
    upper, work, merged = (folder / name for name in ("upper", "work", "merged"))
    for path in (upper, work, merged):
        path.mkdir(parents=True)
    layers = f"lowerdir={root},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, merged], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", "--lazy", merged], check=False)


def enter(root: Path, binds: list[str], command: list[str]) -> list[str]:
    """The argv that runs `command` inside `root`, seen from a node."""
    shown = [word for bind in binds for word in ("--bind", bind)]
    return [sys.executable, str(REPOSITORY / "scripts" / "rootfs.py"), "enter", str(root), *shown, "--", *command]


def wait_for_sshd(cluster: nodes.Cluster, name: str, log: Path) -> None:
    """Until something listens on port 2222 in the node. Raises SystemExit after READY_S seconds."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if ":2222" in cluster.run(name, ["ss", "-Hltn"]).stdout:
            return
        time.sleep(0.2)
    raise SystemExit(f"error: node {name}'s ssh server did not start within {READY_S} s: {log.read_text()[-300:]}")


def main(argv: list[str] | None = None) -> int:
    """Return 0 when both commands end with a good record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--bind", action="append", default=[], metavar="PATH")
    options = parser.parse_args(argv)
    root = options.root.resolve()
    if os.geteuid() != 0 or not (root / "image.json").exists():
        raise SystemExit("error: this needs root, and a root that `scripts/rootfs.py build` finished")

    failed = []
    with contextlib.ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="two-nodes-"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        keys = scratch / "keys"
        keys.mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id_ed25519"], check=True)
        # Before the nodes: each gets a copy of the mounts that are there when it starts.
        roots = {name: stack.enter_context(overlay(root, scratch / name)) for name in ("a", "b")}
        cluster = nodes.up(f"image-{os.getpid()}", len(roots), tied=True)
        stack.callback(nodes.down, cluster.name)
        binds = [*options.bind, "/etc/hosts", str(keys)]
        for node in cluster.nodes:
            start = ["env", f"NODE_KEYS={keys}", "bash", f"{INSIDE}/scripts/container/node.sh"]
            log = scratch / f"{node.name}.log"
            server = subprocess.Popen(
                cluster.argv(node.name, enter(roots[node.name], binds, start)),
                stdout=subprocess.DEVNULL,
                stderr=log.open("w"),
            )
            stack.callback(server.kill)
            wait_for_sshd(cluster, node.name, log)
        seen: set[Path] = set()
        for engine, command in COMMANDS.items():
            inside = f"cd {INSIDE} && export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 && {command}"
            started = time.monotonic()
            print(f"--- {command}", flush=True)
            run = subprocess.run(
                cluster.argv("a", enter(roots["a"], binds, ["bash", "-c", f"{inside} --study two-nodes"])),
                timeout=COMMAND_S,
                check=False,
            )
            new = {*roots["a"].glob(f"{INSIDE[1:]}/results/two-nodes/*/result.json")} - seen
            seen |= new
            statuses = [json.loads(file.read_text())["status"] for file in new]
            print(
                f"--- {engine}: exit code {run.returncode} after {time.monotonic() - started:.0f} s, records {statuses}"
            )
            good = run.returncode == 0 and statuses == [GOOD]
            if not good:
                failed.append(engine)
    print("failed: " + ", ".join(failed) if failed else "both commands ran across two nodes made from the image")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
