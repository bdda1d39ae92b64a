"""`harness run --min-np`: a lost worker changes the world, which the records say, and not the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import BIN, run_command

from harness.analysis.check import check_runs
from harness.records import record_files
from harness.records.record_files import RESULT, WEIGHTS, read_json, read_jsonl, runs_of
from harness.worker.elastic import WORLDS

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]
STEPS = 30
TINY = ("--preset", "tiny", "--steps", str(STEPS), "--log-every", "1", "--timing-warmup", "1", "--eval-samples", "6")


def weights(results: Path, *arguments: str, **variables: str) -> tuple[Path, dict]:
    """The run's folder and its weights; the command must end well."""
    from safetensors.torch import load_file

    argv = [str(BIN / "harness"), "run", *arguments, *TINY, "--results", str(results)]
    ended = run_command(argv, results.with_suffix(".log"), limit_s=150, **variables)
    assert ended.code == 0, ended.output[-3000:]
    (folder,) = runs_of(results / "scratch")
    return folder, load_file(folder / WEIGHTS)


def test_a_run_survives_a_lost_worker_and_its_records_say_so(tmp_path: Path) -> None:
    hosts = tmp_path / "hostfile"
    hosts.write_text("# two names of this machine are two hosts to Horovod\nlocalhost slots=1\n127.0.0.1 slots=1\n")
    elastic = ("--nodes", "2", "--hostfile", str(hosts), "--min-np", "1", "--max-np", "2")
    folder, found = weights(
        tmp_path / "elastic", "--backend", "horovod", *elastic, "--set", "engine.commit_every=4", "--timeout", "30",
        HARNESS_FAULT="kill:rank=1,step=14",
    )  # fmt: skip
    result = read_json(folder / RESULT)
    assert result["status"] == "ok", result
    assert [world["world_size"] for world in result["elastic"]["worlds"]] == [2, 1]
    assert result["elastic"]["worlds"][1]["step"] in (12, 13, 14)
    assert 0 <= result["elastic"]["replayed_steps"] <= 4
    assert "the number of workers changed while it ran (2 from step 0, then 1 from step" in " ".join(result["warnings"])
    assert result["contract"]["worlds"].startswith("2 from step 0")
    assert [row["step"] for row in read_jsonl(folder / record_files.STEPS)] == list(range(STEPS))
    assert check_runs([folder]) == []
    worlds = list(read_jsonl(folder / WORLDS))
    assert sorted(worlds[0]["hosts"]) == ["127.0.0.1", "localhost"]
    assert worlds[1]["hosts"] == [worlds[0]["hosts"][0]], "the first rank's host is left"
    _, expected = weights(tmp_path / "single", "--backend", "single")
    for name, value in expected.items():
        assert float((found[name] - value).norm() / value.norm()) <= 1e-5, name


def test_horovodrun_by_hand_may_be_elastic_too(tmp_path: Path) -> None:
    discovery = tmp_path / "discover.sh"
    discovery.write_text("#!/bin/sh\necho localhost:1\necho 127.0.0.1:1\n")
    discovery.chmod(0o755)
    options = ["-np", "2", "--min-np", "1", "--max-np", "2", "--network-interfaces", "lo"]
    argv = [str(BIN / "horovodrun"), *options, "--host-discovery-script", str(discovery), str(BIN / "python")]
    argv += ["harness/run.py", "--backend", "horovod", *TINY, "--results", str(tmp_path / "results")]
    ended = run_command(argv, tmp_path / "log.txt", limit_s=120)
    assert ended.code == 0, ended.output[-3000:]
    (folder,) = runs_of(tmp_path / "results" / "scratch")
    result = read_json(folder / RESULT)
    assert result["status"] == "ok"
    assert [world["world_size"] for world in result["elastic"]["worlds"]] == [2]
    assert not [text for text in result["warnings"] if "number of workers changed" in text]
