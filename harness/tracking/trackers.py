"""Figures to TensorBoard, MLflow or Weights & Biases: none is needed, none is imported unless it is named.

A sink has three methods: `start`, `log`, `finish`. It is fed from the records of a run that has ended
(`harness results export`), never by the worker, so that a slow or dead service cannot cost a step.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from harness.common.formatting import is_number
from harness.job.declaration import JobError
from harness.records.run_record import RecordedRun


class Sink(Protocol):
    """Where figures go. Calls come in this order, `log` any number of times, from one thread."""

    def start(self, name: str, job: Mapping[str, Any]) -> None:
        """A run begins: `name` is STUDY/RUN, `job` its resolved job."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures of optimizer step `step` (number of finished steps)."""

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        """The run ended: ok, failed or running (nobody watches any longer); `summary` has the final figures."""


class TensorBoardSink:
    """Event files in `where`/STUDY/RUN (default: runs/)."""

    def __init__(self, where: str = "") -> None:
        _need("tensorboard", "tensorboard")
        self._root = Path(where or "runs")
        self._writer: Any = None

    def start(self, name: str, job: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._root / name))
        rows = "\n".join(f"| {key} | {value} |" for key, value in job.items())
        self._writer.add_text("job", f"| field | value |\n|---|---|\n{rows}")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        for key, value in summary.items():
            self._writer.add_scalar(f"final/{key}", value, 0)
        self._writer.add_text("status", status)
        self._writer.close()


class MlflowSink:
    """A run in the experiment named as the study, at tracking URI `where` (default: MLflow's own)."""

    def __init__(self, where: str = "") -> None:
        _need("mlflow", "mlflow")
        import mlflow

        self._mlflow = mlflow
        if where:
            mlflow.set_tracking_uri(where)

    def start(self, name: str, job: Mapping[str, Any]) -> None:
        study, _, run = name.partition("/")
        self._mlflow.set_experiment(study)
        self._mlflow.start_run(run_name=run or study)
        self._mlflow.log_params({key: str(value)[:500] for key, value in job.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({f"final/{key}": value for key, value in summary.items()})
        self._mlflow.end_run("FINISHED" if status == "ok" else "FAILED" if status == "failed" else "RUNNING")


class WandbSink:
    """A run in project `where` (default: the study). Follows WANDB_MODE, so ``offline`` works without a network."""

    def __init__(self, where: str = "") -> None:
        _need("wandb", "wandb")
        self._project = where
        self._run: Any = None

    def start(self, name: str, job: Mapping[str, Any]) -> None:
        import wandb

        study, _, run = name.partition("/")
        self._run = wandb.init(project=self._project or study, group=study, name=run or study, config=dict(job))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        self._run.summary.update({f"final/{key}": value for key, value in summary.items()} | {"status": status})
        self._run.finish(exit_code=0 if status == "ok" else 1)


_KINDS: dict[str, Callable[[str], Sink]] = {"tensorboard": TensorBoardSink, "mlflow": MlflowSink, "wandb": WandbSink}


def open_sink(text: str) -> Sink:
    """The sink of ``KIND`` or ``KIND:WHERE``. Raises JobError for an unknown or uninstalled one."""
    kind, _, where = text.partition(":")
    if kind not in _KINDS:
        raise JobError(f"unknown sink '{kind}': choose one of {', '.join(_KINDS)}")
    return _KINDS[kind](where)


def row_values(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a row of steps.jsonl, flat: loss, losses/ce, grad_norm, lr, step_s, step_samples_per_s (of this
    step alone), ..."""
    values = {key: row.get(key) for key in ("loss", "grad_norm", "loss_scale", "lr", "step_s", "data_s", "epoch")}
    values |= {f"losses/{name}": value for name, value in (row.get("losses") or {}).items()}
    if row.get("step_s"):
        values["step_samples_per_s"] = row["samples"] / row["step_s"]
    return {key: float(value) for key, value in values.items() if value is not None and is_number(value)}


def summary_values(result: Mapping[str, Any]) -> dict[str, float]:
    """Total throughput, final loss and the evaluation's figures of a result.json."""
    values: dict[str, Any] = {
        "samples_per_s": ((result.get("throughput") or {}).get("total") or {}).get("samples_per_s"),
        "loss": (result.get("final") or {}).get("loss"),
        **(result.get("evaluation") or {}),
    }
    return {key: float(value) for key, value in values.items() if is_number(value)}


def send(run: RecordedRun, sink: Sink) -> None:
    """Sends a finished run, whole."""
    sink.start(f"{run.study}/{run.name}", {key: value for key, value in run.job.items() if key != "schema"})
    for row in run.steps:
        sink.log(row_values(row), int(row["step"]) + 1)
    whole = run.totals
    throughput = {**(run.result.get("throughput") or {}), "total": None if whole is None else whole.record()}
    result = {**run.result, "throughput": throughput}
    sink.finish(str(result.get("status", "running")), summary_values(result))


def _need(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise JobError(f"sink '{extra}' is not installed: pip install 'anomaly-distbench[{extra}]'")
