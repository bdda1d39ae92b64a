"""What new jobs get where they do not say, and that records from before it stay what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.commands.experiment.duel import _base
from harness.job import measured_defaults
from harness.job.declaration import Job
from harness.job.options import make_job
from harness.records.comparability import contract, differences
from harness.study.study_file import Study

LLAMA = {"preset": "llama-600m"}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with two GPUs, by its driver's folder."""
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(measured_defaults, "_DRIVER", tmp_path)


@pytest.mark.usefixtures("gpus")
def test_a_wholly_trained_model_is_compiled_on_a_gpu_and_its_job_says_so() -> None:
    job = make_job(LLAMA)
    assert (job.compile, job.model) == (True, {"loss": "fused"})
    study = Study.from_matrix(name="s", backends=["ddp", "horovod"], workers=[1, 2], repeats=1, job=dict(LLAMA))
    assert {(job.compile, job.model["loss"]) for job in study.jobs} == {(True, "fused")}


@pytest.mark.usefixtures("gpus")
def test_the_papers_model_computes_no_padding_on_a_gpu() -> None:
    job = make_job({"preset": "anomalygpt-7b"})
    assert (job.compile, job.model) == (False, {"pack_on_gpu": True, "prefix_on_gpu": True})
    asked = make_job({"preset": "anomalygpt-7b", "settings": ("model.pack_on_gpu=false", "model.prefix_on_gpu=false")})
    assert asked.model == {"pack_on_gpu": False, "prefix_on_gpu": False}


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    "given", [{"preset": "small"}, {"preset": "anomalygpt-7b", "device": "cpu"}, {**LLAMA, "device": "cpu"}], ids=str
)
def test_frozen_models_and_processors_keep_what_they_had(given: dict[str, Any]) -> None:
    job = Job.from_dict(measured_defaults.with_measured(given))
    assert (job.compile, job.model) == (False, {})


def test_nor_is_a_machine_without_gpus_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measured_defaults, "_DRIVER", tmp_path / "none")
    assert measured_defaults.with_measured(LLAMA) == LLAMA


@pytest.mark.usefixtures("gpus")
def test_what_the_user_says_holds() -> None:
    job = make_job({**LLAMA, "compile": False, "settings": ("model.loss=plain", "model.layers=2")})
    assert (job.compile, job.model) == (False, {"loss": "plain", "layers": 2})


@pytest.mark.usefixtures("gpus")
def test_a_record_from_before_stays_what_it_was() -> None:
    """Read again it is not compiled, and beside a new run the difference is named; nothing is, beside one that was
    asked for as the old ones were."""
    old = {name: value for name, value in Job(**LLAMA).to_dict().items() if name != "compile"}
    again = Job.from_dict(old)
    assert (again.compile, again.model) == (False, {})

    def flat(job: dict[str, Any]) -> dict[str, Any]:
        return contract(job, {}, {})

    new = make_job(LLAMA).to_dict()
    assert set(differences(flat(old), flat(new))) == {
        "model.loss is plain in one and fused in the other",
        "compiled blocks is not set in one and True in the other",
    }
    asked = make_job({**LLAMA, "compile": False, "settings": ("model.loss=plain",)}).to_dict()
    assert not differences(flat(old), flat(asked))


@pytest.mark.usefixtures("gpus")
def test_a_duels_contenders_get_it_too() -> None:
    options = {"global_batch": 8, "scaling": "strong", "precision": "bf16", "mode": "matched", "settings": (), **LLAMA}
    options |= {"random_weights": False, "seed": 0, "device": "auto", "time_limit_s": 0.0}
    base = _base(options)
    assert (base.compile, base.model) == (True, {"loss": "fused"})
