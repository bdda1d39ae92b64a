"""What the environment record holds, and what it must not hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records import environment
from harness.records.soundness import schema_errors


def test_record_is_json_and_follows_its_schema() -> None:
    record = environment.environment()
    assert schema_errors("environment", {"schema": 1, **json.loads(json.dumps(record))}) == []
    assert record["versions"]["torch"]
    assert record["cpu"]["usable_cores"] >= 1


def test_no_secret_no_address_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_SECRET_KEY", "hunter2")
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", "10.1.2.3")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("NCCL_TOPO_FILE", str(Path.home() / "topo.xml"))
    kept = environment.variables()
    assert kept["NCCL_DEBUG"] == "INFO"
    assert kept["NCCL_TOPO_FILE"] == "~/topo.xml"
    assert "hunter2" not in str(kept)
    assert "10.1.2.3" not in str(kept)


def test_hostname_can_be_hashed() -> None:
    plain, hashed = environment.host_name(hashed=False), environment.host_name(hashed=True)
    assert plain != hashed
    assert len(hashed) == 12
    assert int(hashed, 16) >= 0


def test_git_says_commit() -> None:
    found = environment.git()
    if found is None:
        pytest.skip("not a git checkout")
    assert len(found["commit"]) >= 40
    assert isinstance(found["dirty"], bool)


def test_no_engine_is_imported_to_ask_its_version() -> None:
    code = (
        "import sys; from harness.records.environment import environment; environment(); "
        "print([m for m in ('torch', 'deepspeed', 'horovod', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
