"""The live view: what it says of rows, while they come and at the end."""

import io
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from harness.commands.results.watch import watch as watch_command
from harness.job.declaration import Job
from harness.records.locks import hold, release
from harness.records.record_files import RESULT, STEPS, RecordError, read_json, write_json
from harness.records.run_folder import write_running
from harness.records.tail import Follower, Tail
from harness.tracking.live_view import LiveView, sparkline, watch
from tests.harness.made_runs import write_run


def shown(view: LiveView) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(view.render())
    return console.export_text()


def row(step: int, **changes) -> dict:
    return {
        "step": step, "loss": 3.0 - 0.1 * step, "samples": 8, "step_s": 0.5, "data_s": 0.05, "loss_scale": 1.0,
        "skipped": False, "rank_step_s": [0.5, 0.4], **changes,
    }  # fmt: skip


def test_view_tells_progress_speed_loss_lag_and_gpu() -> None:
    view = LiveView(Job(backend="horovod", slots=2, steps=20).to_dict(), "run")
    gpu = {"index": 0, "util_percent": 97, "mem_mib": 12000.0, "power_w": 640.2, "temperature_c": 61, "energy_j": 1.0}
    view.add([row(step) for step in range(10)], [{"cpu_percent": 99.0, "rss_mib": 512.0, "host": "a", "gpus": [gpu]}])
    text = shown(view)
    for part in ("Horovod, 2 workers", "10/20 steps, 0:05 left", "16.0 samples/s", "data 10%", "2.100",
                 "rank 0 +25.0%", "rank 1 +0.0%", "97 % busy", "640 W", "512 MiB on a"):  # fmt: skip
        assert part in text, part


def test_skipped_steps_and_scale_of_fp16_are_shown() -> None:
    view = LiveView(Job(precision="fp16", steps=20).to_dict(), "run")
    view.add([row(step, loss_scale=2048.0, skipped=step < 2) for step in range(10)])
    assert "2048, 2 of the last 10 steps skipped" in shown(view)


def test_view_before_the_first_row() -> None:
    assert "0/60 steps" in shown(LiveView(Job().to_dict(), "run"))


def test_tail_gives_only_whole_new_lines(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "x.jsonl")
    assert tail.read() == []
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"a": 1}\n{"a": 2')
        file.flush()
        assert tail.read() == [{"a": 1}]
        file.write("2}\n")
        file.flush()
        assert tail.read() == [{"a": 22}]
    assert tail.read() == []


def test_watch_follows_a_growing_run_to_its_end(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "s", Job(backend="horovod", slots=2, preset="tiny", steps=40))
    rows = (folder / STEPS).read_text().splitlines(keepends=True)
    result = read_json(folder / RESULT)
    (folder / STEPS).write_text("")
    hold(folder)
    write_running(folder)

    def run() -> None:
        for start in range(0, 40, 10):
            time.sleep(0.05)
            with (folder / STEPS).open("a") as file:
                file.write("".join(rows[start : start + 10]))
        result.pop("schema")
        write_json(folder / RESULT, result)
        release(folder)

    thread = threading.Thread(target=run)
    thread.start()
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    ended = watch(folder, console=console, poll_s=0.02, limit_s=20)
    thread.join()
    assert ended["status"] == "ok"
    assert isinstance(console.file, io.StringIO)
    shown = [int(done) for done in re.findall(r"(\d+)/40 steps", console.file.getvalue())]
    assert shown == sorted(shown)
    assert len(set(shown)) > 2, "it was shown while it grew"
    assert shown[-1] == 40
    assert Follower(folder).result()["status"] == "ok"


def test_watch_has_a_limit(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "s", Job(preset="tiny"))
    hold(folder)
    write_running(folder)
    console = Console(file=io.StringIO())
    assert watch(folder, console=console, poll_s=0.01, limit_s=0.05)["status"] == "running"


@pytest.mark.parametrize("killed", ["after it said who it is", "before it said anything", "by an older program"])
def test_watch_notices_that_the_writer_is_dead(tmp_path: Path, killed: str) -> None:
    folder = write_run(tmp_path / "s", Job(preset="tiny"), fail="x")
    (folder / RESULT).unlink()
    said = "write_running(folder)" if killed.startswith("after") else "pass"
    program = f"""
import os, pathlib, signal
from harness.records.run_folder import write_running
from harness.records.locks import hold
folder = pathlib.Path({str(folder)!r})
hold(folder)
{said}
os.kill(os.getpid(), signal.SIGKILL)
"""
    if killed.startswith("by an older"):
        write_json(folder / RESULT, {"status": "running"})
    else:
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    out = io.StringIO()
    result = watch(folder, console=Console(file=out, width=200), poll_s=0.01, limit_s=5)
    assert result["status"] == "failed"
    assert "is gone and has not ended the record" in out.getvalue()
    if killed.startswith("after"):
        assert f"on {platform.node()}" in result["reason"]
    assert CliRunner().invoke(watch_command, [str(folder)]).exit_code == 1


def test_command_says_how_the_run_ended(tmp_path: Path) -> None:
    good = write_run(tmp_path / "s", Job(preset="tiny"))
    bad = write_run(tmp_path / "s", Job(preset="tiny", seed=1), fail="rank 0: boom")
    assert CliRunner().invoke(watch_command, [str(good)]).exit_code == 0
    assert CliRunner().invoke(watch_command, [str(bad)]).exit_code == 1
    done = CliRunner().invoke(watch_command, [str(tmp_path)])
    with pytest.raises(RecordError, match="not a run folder"):
        raise done.exception


def test_sparkline_runs_from_lowest_to_highest() -> None:
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(list(range(1000)), width=40)) == 40
