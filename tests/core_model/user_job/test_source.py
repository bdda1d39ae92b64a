"""Which files are a user's job: what their hash is made of."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from core_model.user_job.source import code_hash, file_hashes


def test_a_job_in_the_folder_where_the_command_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.classes calls its file ``_classes.py``, without a folder: that is none of the user's, wherever they are."""
    (file := tmp_path / "my_job.py").write_text("x = 1\n")
    (beside := tmp_path / "my_parts.py").write_text("y = 1\n")
    monkeypatch.chdir(tmp_path)
    nowhere, own = ModuleType("nowhere"), ModuleType("my_parts")
    nowhere.__file__, own.__file__ = "_classes.py", str(beside)
    monkeypatch.setitem(sys.modules, "nowhere", nowhere)
    monkeypatch.setitem(sys.modules, "my_parts", own)
    assert list(file_hashes(file)) == ["my_job.py", "my_parts.py"]
    before = code_hash(file)
    beside.write_text("y = 2\n")
    assert code_hash(file) != before
