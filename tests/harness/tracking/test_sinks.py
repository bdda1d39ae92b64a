"""Sinks: the three methods in their order, TensorBoard for real, and a clear line where one is missing."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.commands.results.export import export
from harness.job.declaration import Job, JobError
from harness.records.run_record import RecordedRun
from harness.tracking.trackers import open_sink, row_values, send
from tests.harness.made_runs import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "study", Job(backend="horovod", slots=2, preset="tiny", steps=20, timing_warmup=5))


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, name: str, job: Mapping[str, Any]) -> None:
        self.calls.append(("start", name, job["backend"]))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.calls.append(("log", step, dict(values)))

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        self.calls.append(("finish", status, dict(summary)))


def test_a_run_is_sent_whole_and_in_order(run: Path) -> None:
    sink = Recorder()
    send(RecordedRun(run), sink)
    assert sink.calls[0] == ("start", f"study/{run.name}", "horovod")
    assert [call[1] for call in sink.calls[1:-1]] == list(range(1, 21))
    assert sink.calls[-1][:2] == ("finish", "ok")
    assert {"samples_per_s", "image_auroc", "loss"} <= set(sink.calls[-1][2])


def test_values_are_flat_finite_and_never_clash_as_folders() -> None:
    row = {
        "step": 0,
        "loss": float("nan"),
        "losses": {"ce": 1.0},
        "grad_norm": None,
        "step_s": 0.5,
        "samples": 8,
        "lr": 1,
    }
    values = row_values(row)
    assert values == {"losses/ce": 1.0, "step_s": 0.5, "step_samples_per_s": 16.0, "lr": 1.0}
    # A file store keeps "a/b" as file b in folder a: no key may be another's folder.
    keys = row_values({**row, "loss": 1.0})
    assert not any(key.startswith(f"{other}/") for key in keys for other in keys)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard (make setup)")
def test_tensorboard_can_be_read_back(run: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = CliRunner().invoke(export, [str(run), "--to", f"tensorboard:{tmp_path / 'tb'}"])
    assert done.exit_code == 0, done.output
    events = EventAccumulator(str(tmp_path / "tb" / "study" / run.name))
    events.Reload()
    losses = events.Scalars("loss")
    recorded = RecordedRun(run).steps
    assert [event.step for event in losses] == list(range(1, 21))
    assert losses[-1].value == pytest.approx(recorded[-1]["loss"], rel=1e-6)
    assert "final/image_auroc" in events.Tags()["scalars"]


def test_unknown_and_missing_sinks_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobError, match="unknown sink 'elsewhere': choose one of tensorboard, mlflow, wandb"):
        open_sink("elsewhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind in ("tensorboard", "mlflow", "wandb"):
        with pytest.raises(JobError, match=rf"pip install 'anomaly-distbench\[{kind}\]'"):
            open_sink(kind)
