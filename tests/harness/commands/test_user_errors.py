"""A user's mistake is one line and exit code 2, and is known by its class: other libraries use the same names."""

from __future__ import annotations

import click
import pandas
import pytest

from backends.base import BackendError
from core_model.data.errors import DataError
from core_model.errors import ModelError
from harness import cli
from harness.job.declaration import JobError
from harness.records.record_files import RecordError
from mpi.errors import UserError
from mpi.hostfile import HostfileError
from mpi.launchers.base import LaunchError
from mpi.network import NetworkError


def run_raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: fail)
    cli.main(["fail"])


@pytest.mark.parametrize(
    "kind",
    [JobError, RecordError, BackendError, ModelError, DataError, HostfileError, LaunchError, NetworkError],
)
def test_every_package_s_errors_share_one_base(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert issubclass(kind, UserError)
    with pytest.raises(SystemExit) as stop:
        run_raising(monkeypatch, kind("thing: remedy"))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: thing: remedy\n"


def test_a_fault_in_a_library_keeps_its_traceback_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pandas.errors.DataError, match="No numeric types"):
        run_raising(monkeypatch, pandas.errors.DataError("No numeric types to aggregate"))
