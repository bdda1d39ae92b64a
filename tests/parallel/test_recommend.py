"""`harness recommend` on this machine: duels of now are what it says was measured, and they are recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import main
from harness.records.record_files import read_json

pytestmark = pytest.mark.parallel


def test_duels_of_now_are_measured_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recommend", "--preset", "tiny", "--workers", "2", "--global-batch", "8", "--budget", "20s"]
    main([*words, "--backends", "ddp,horovod,deepspeed:1", "--results", str(tmp_path), "--json"])
    answer = json.loads(capsys.readouterr().out)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert answer["duels"] == folder.name
    record = read_json(folder / "duel.json")
    assert [side["name"] for side in record["contenders"]] == ["single@1", "ddp@2", "horovod@2", "deepspeed ZeRO-1@2"]
    for one in answer["settings"]:
        assert one["speed"]["way"] == "measured", one
        assert one["speed"]["why"] == folder.name
        assert one["speed"]["value"] > 0
        assert one["memory"]["fits"] == "yes"
    assert sorted(answer["fastest"]) == ["ddp", "deepspeed:1", "horovod"]
