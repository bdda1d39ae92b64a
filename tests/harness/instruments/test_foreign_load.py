"""Work that is not the job's: real busy loops, real children, this machine's real counters."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.instruments.foreign_load import HostLoad, own_processes, said

BUSY = "import time\nprint('at work', flush=True)\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@pytest.fixture
def busy() -> Iterator[subprocess.Popen]:
    """A program that keeps one core busy, and is a child of this test."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def used_by(process: subprocess.Popen) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def test_a_busy_loop_of_another_program_is_foreign_and_of_the_job_is_not(busy: subprocess.Popen) -> None:
    """The same loop beside two jobs: a stranger to one (a process that waits), a part of the other."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        beside, within = HostLoad([stranger.pid]), HostLoad([stranger.pid, busy.pid])
        began, before, used = time.monotonic(), used_by(busy), 0.0
        while used < 0.8:  # of a processor: how long that takes depends on what else runs here
            assert time.monotonic() - began < 60
            time.sleep(0.2)
            used = used_by(busy) - before
        read, own = beside.read(), within.read()
        seconds = time.monotonic() - began
        stranger.kill()
    assert read is not None
    assert own is not None
    # other programs come and go: the difference of the two is the loop
    assert (read["foreign_cores"] - own["foreign_cores"]) * seconds == pytest.approx(used, abs=0.25)
    total = beside.total()
    assert total is not None
    assert total["foreign_cores"] == pytest.approx(read["foreign_cores"], rel=0.1)
    assert total["worst_cores"] >= total["foreign_cores"]
    assert total["cores"] == len(os.sched_getaffinity(0))


def test_children_that_came_and_went_are_the_jobs() -> None:
    """One that lives at the end, one that has ended and was waited for, one that did so between two readings."""
    half = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass\n"
    twice = f"import subprocess, sys\n[subprocess.run([sys.executable, '-c', {half!r}]) for _ in range(2)]\n"
    job = f"{twice}{half}\ninput()"
    with subprocess.Popen([sys.executable, "-c", job], stdin=subprocess.PIPE) as process:
        ours, nobody = HostLoad([process.pid]), HostLoad([-1])
        used = 0.0
        while used < 1.75:
            time.sleep(0.25)
            ours.read(), nobody.read()
            times = psutil.Process(process.pid).cpu_times()
            used = times.user + times.system + times.children_user + times.children_system
        process.kill()
    first, second = ours.total(), nobody.total()
    assert first is not None
    assert second is not None
    seconds = ours._last - ours._began
    # this test's own process is above the job, and of the one that has no processes a stranger
    assert (second["foreign_cores"] - first["foreign_cores"]) * seconds == pytest.approx(used, abs=0.5)


def test_the_family_holds_the_job_and_what_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        below, above = own_processes([process.pid])
        process.kill()
    assert below == {process.pid}
    assert os.getpid() in above
    assert process.pid not in above


def _proc(folder: Path, busy: int, steal: int, processes: dict[int, tuple[str, int, int, int]]) -> Path:
    """A /proc with one core, and name, parent, own and children's ticks of each process."""
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"cpu  9 9 9\ncpu0 {busy} 0 0 50 0 7 7 {steal} 0 0\nintr 1\n")
    for pid, (name, parent, own, children) in processes.items():
        (folder / str(pid)).mkdir(exist_ok=True)
        text = f"{pid} ({name}) S {parent} 0 0 0 0 0 0 0 0 0 {own} 0 {children} 0 20 0 1 0 77"
        (folder / str(pid) / "stat").write_text(text)
    return folder


def test_steal_and_the_kernels_threads_are_no_programs(tmp_path: Path) -> None:
    kernel, thread = ("kthreadd", 0, 0, 0), "kworker (x) 1"
    proc = _proc(tmp_path / "proc", 0, 0, {2: kernel, 3: (thread, 2, 0, 0), 50: ("rank", 1, 0, 0)})
    load = HostLoad([50], [0], proc)
    time.sleep(0.2)
    _proc(proc, 100, 40, {2: kernel, 3: (thread, 2, 30, 0), 50: ("rank", 1, 70, 0)})
    read = load.read()
    assert read is not None
    assert read["foreign_cores"] == 0
    assert read["steal_cores"] > 0.4


def test_a_machine_that_hides_its_time_is_not_measured(tmp_path: Path) -> None:
    """Some sandboxes show a /proc/stat that stands still: that is no quiet machine."""
    proc = _proc(tmp_path / "proc", 0, 0, {50: ("rank", 1, 0, 0)})
    load = HostLoad([50], [0], proc)
    time.sleep(0.05)
    _proc(proc, 0, 0, {50: ("rank", 1, 500, 0)})
    assert load.read() is None
    assert load.total() is None


def test_what_is_said_names_host_figure_and_threshold() -> None:
    def host(**values: object) -> dict[str, object]:
        load = {"cores": 2.0, "foreign_cores": 0.0, "steal_cores": 0.0, "worst_cores": 0.0}
        return {"host": "a", "load": load | values, "gpu_processes": []}

    assert said([host(), {"host": "b", "load": None, "gpu_processes": []}]) == []
    assert said([host(foreign_cores=0.1)]) == [], "at the threshold nothing is said"
    (line,) = said([host(foreign_cores=0.7)])
    assert line.startswith("a: other programs kept 0.70 of 2 cores busy while it trained")
    (line,) = said([host(steal_cores=0.5)])
    assert "hypervisor took 0.50 of 2 cores" in line
    (line,) = said([host() | {"gpu_processes": [{"uuid": "u", "pid": 7, "name": "python"}]}])
    assert "1 other process used its GPUs: python (process 7)" in line
