"""Every launcher: who runs where and what arrives.

A token in the environment is on no command line of any process while the job runs, and every worker has it.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.nodes.leftovers import assert_nothing_left
from tests.nodes.test_launchers import LAUNCHERS, launch

pytestmark = [pytest.mark.parallel, pytest.mark.slow]
TOKEN = "hf_not4realNot4realNot4real"
OTHER = "0ther-not-real-0ther"  # not carried to other nodes by any launcher but horovodrun
NASTY = ["a 'b' $c", "%h;x", '"', "*"]
_TAG = re.compile(r"\[1,\d\]<std(?:out|err)>:")  # mpirun's, before each line
SCRIPT = Path(__file__).with_name("launch_on_node.py")


@contextmanager
def command_lines_watched() -> Iterator[set[str]]:
    """The command lines that held a secret at any look; all processes of the machine, the nodes' among them."""
    shown: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if TOKEN in text or OTHER in text:
                    shown.add(text[:2000])

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield shown
    finally:
        over.set()
        watcher.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", OTHER)  # deepspeed forwards all of MLFLOW*, horovodrun everything


def assert_all_have_it(log: str, workers: int) -> None:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()[:16]
    assert sorted(re.findall(r"TOKEN (\d+) taken (\w+)", log)) == [(str(rank), digest) for rank in range(workers)], log


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_arguments_variables_and_secrets_arrive_over_ssh(two, launcher):
    with command_lines_watched() as shown:
        found = launch(two, launcher, *NASTY, "shortly")
    assert (found["returncode"], found["reason"], found["orphans"]) == (0, "", 0), found["log"]
    assert_nothing_left(two)
    workers = sorted(json.loads(line) for line in re.findall(r"WORKER (\[.*\])", _TAG.sub("", found["log"])))
    words = [*NASTY, "shortly"]
    assert workers == [[rank, 2, 0, 1, host, words, "two 'words' $x", "1"] for rank, host in ((0, "a"), (1, "b"))]
    assert shown == set()
    assert_all_have_it(found["log"], 2)
    assert TOKEN not in json.dumps(found)
    assert OTHER not in json.dumps(found)
    assert not list(Path("/dev/shm").glob(f"*{found['tag']}*"))


# On one machine a launcher starts its workers as on the first of two nodes: one of each kind is enough here.
@pytest.mark.parametrize("launcher", ["deepspeed", "horovodrun", "mpirun"])
def test_on_this_machine(launcher):
    with command_lines_watched() as shown:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), launcher, "localhost:2", "90", "shortly"],
            capture_output=True,
            text=True,
            timeout=150,
            stdin=subprocess.DEVNULL,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    if "missing" in found:
        pytest.skip(found["missing"])
    assert found["returncode"] == 0, found["log"]
    assert shown == set()
    assert_all_have_it(found["log"], 2)
    assert OTHER not in json.dumps(found)
