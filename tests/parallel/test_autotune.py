"""Horovod's tuner as a phase: it searches, its outcome is the same on every rank, and the run after it is fixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import HERE, run

from backends.base import BackendError
from backends.horovod.autotune import read_outcome


@pytest.mark.timeout(120)
def test_the_outcome_is_recorded_and_fixed(tmp_path: Path) -> None:
    ended = run("horovodrun-gloo", 2, HERE / "autotune.py", [str(tmp_path)], tmp_path / "log.txt", limit_s=100)
    assert ended.code == 0, ended.output[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["outcome"] == second["outcome"]
    assert first["outcome"]["finished"]
    assert first["outcome"]["samples"] >= 4
    assert first["description"]["autotune"] is True
    settings, best = first["fixed"], first["outcome"]["best"]
    assert not settings["autotune"]
    assert settings["fusion_threshold_mb"] == best["fusion_threshold_mb"]
    assert settings["cycle_time_ms"] == best["cycle_time_ms"]
    assert settings["extra"]["HOROVOD_X"] == 1
    assert not [name for name in settings["extra"] if "AUTOTUNE" in name]
    scores = [float(line.split(",")[-1]) for line in (tmp_path / "autotune.csv").read_text().splitlines()[1:]]
    assert best["score"] == pytest.approx(max(scores))


def test_an_empty_log_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    log.write_text("hierarchical_allreduce,hierarchical_allgather,torus_allreduce,cache_enabled,cycle,fusion,score\n")
    with pytest.raises(BackendError, match="wrote no sample: train more steps"):
        read_outcome(log)
