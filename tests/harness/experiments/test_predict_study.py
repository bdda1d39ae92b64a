"""Scaling curves predicted from runs on one and two workers: the law is found, cells past them are held out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from harness.analysis.comparison import summarize_study
from harness.commands.experiment.predict import predict
from harness.experiments.prediction.from_study import Law, Timed, build, fit, resampled
from harness.job.declaration import Job, JobError
from tests.harness.made_runs import write_run

TRUE = Law(fixed=0.02, sample=0.001, exchange=0.015)
CELLS = [(1, 64.0), (2, 64.0), (2, 32.0)]


def runs(noise: float = 0.0, repeats: int = 3) -> list[Timed]:
    draw = np.random.default_rng(1)
    return [
        Timed(workers=n, batch=b, step_s=TRUE.step(n, b) * (1 + noise * draw.standard_normal()))
        for n, b in CELLS
        for _ in range(repeats)
    ]


def test_the_law_is_found_from_two_sizes() -> None:
    found = fit(runs())
    for name in ("fixed", "sample", "exchange"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name))


def test_one_size_gives_the_step_it_saw_and_no_fixed_part() -> None:
    found = fit([run for run in runs() if run.batch == 64])
    assert found.fixed == 0
    assert found.step(1, 64) == pytest.approx(TRUE.step(1, 64))
    assert found.step(2, 64) == pytest.approx(TRUE.step(2, 64))


def test_bytes_no_more_than_double_and_messages_grow() -> None:
    many = 1024
    assert TRUE.step(many, 0) - TRUE.fixed == pytest.approx(2 * TRUE.exchange, rel=0.01)
    assert TRUE.step(many, 0, messages=True) - TRUE.fixed == pytest.approx((many - 1) * TRUE.exchange)


def test_resampling_follows_the_scatter() -> None:
    wide, narrow = (np.std([law.exchange for law in resampled(runs(noise), 60)]) for noise in (0.05, 0.005))
    assert wide > 3 * narrow > 0


def test_one_worker_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="1 and on 2 workers"):
        fit([run for run in runs() if run.workers == 1])


def test_strong_scaling_alone_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="strong scaling alone"):
        fit([Timed(workers=1, batch=16, step_s=0.1), Timed(workers=2, batch=8, step_s=0.06)])
    for slots in (1, 2):
        write_run(tmp_path / "s", Job(preset="tiny", backend="ddp", slots=slots, steps=40), images=6)
    with pytest.raises(JobError, match=r"strong scaling alone .*: measure weak scaling too"):
        build(summarize_study(tmp_path / "s"), largest=4)


def test_a_failed_run_of_a_kind_hides_none_of_it(tmp_path: Path) -> None:
    for slots, repeat in ((1, 0), (2, 0), (1, 1), (2, 1)):
        job = Job(preset="tiny", backend="ddp", slots=slots, steps=40, repeat=repeat)
        write_run(tmp_path / "s", job, step_s=0.1 / slots, images=6)
        weak = job.with_(scaling="weak", global_batch=8 * slots, run=f"weak-{slots}-{repeat}")
        write_run(tmp_path / "s", weak, step_s=0.1, images=6)
    failed = Job(preset="tiny", backend="ddp", slots=4, scaling="weak", global_batch=32, steps=40, run="failed")
    write_run(tmp_path / "s", failed, fail="out of memory")
    curves = build(summarize_study(tmp_path / "s"), largest=4)["engines"]["PyTorch DDP"]["curves"]
    assert set(curves) == {"weak", "strong"}
    assert [point["measured_efficiency"] for point in curves["weak"]][:2] == [None, pytest.approx(1, rel=0.02)]


def test_runs_that_must_not_share_a_curve_are_not_fitted_together(tmp_path: Path) -> None:
    for precision, step_s in (("fp32", 0.1), ("bf16", 0.04)):
        for slots, repeat in ((1, 0), (2, 0), (1, 1), (2, 1)):
            job = Job(preset="tiny", backend="ddp", slots=slots, global_batch=8 * slots, scaling="weak", steps=40)
            job = job.with_(precision=precision, repeat=repeat)
            write_run(tmp_path / "s", job, step_s=step_s, noise=0.001, images=6)
    found = build(summarize_study(tmp_path / "s"), largest=4)["engines"]["PyTorch DDP"]
    assert [point["step_s"] for point in found["curves"]["weak"]] == pytest.approx([0.04] * 3, rel=0.02)
    seen = [point["measured_efficiency"] for point in found["curves"]["weak"]][:2]
    assert seen == [None, pytest.approx(1, rel=0.02)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Horovod, weak and strong, on 1, 2 and 4 workers; the 4 of weak scaling are 30 % slower than the law of bytes."""
    folder = tmp_path_factory.mktemp("results") / "gpus"
    for scaling in ("weak", "strong"):
        for workers in (1, 2, 4):
            whole = 16 * workers if scaling == "weak" else 16
            job = Job(backend="horovod", slots=workers, preset="tiny", global_batch=whole, scaling=scaling, steps=40)
            law = replace(TRUE, sample=0.01)
            slower = 1.3 if (scaling, workers) == ("weak", 4) else 1.0
            run = f"{scaling}-{workers}"
            write_run(folder, job.with_(run=run), step_s=slower * law.step(workers, whole / workers), noise=0.001)
    return folder


def test_more_workers_are_held_out_and_compared(study: Path) -> None:
    report = build(summarize_study(study), largest=8)
    one = report["engines"]["Horovod"]
    assert one["law"]["exchange"] == pytest.approx(TRUE.exchange, rel=0.15)
    errors = {(error["scaling"], error["workers"]): error["error"] for error in one["errors"]}
    assert set(errors) == {("weak", 4), ("strong", 4)}
    assert errors["strong", 4] == pytest.approx(0, abs=0.03)
    assert errors["weak", 4] == pytest.approx(1 / 1.3 - 1, abs=0.03)
    assert [point["workers"] for point in one["curves"]["weak"]] == [1, 2, 4, 8]
    for point in one["curves"]["weak"][1:]:
        assert point["efficiency_low"] - 1e-9 <= point["efficiency"] <= point["efficiency_high"] + 1e-9


def test_the_command_writes_table_and_figure(study: Path) -> None:
    shown = CliRunner().invoke(predict, ["--study", study.name, "--results", str(study.parent), "--to", "8"])
    assert shown.exit_code == 0, shown.output
    text = (study / "prediction.md").read_text()
    assert "Median error of the step on more workers" in text
    assert json.loads((study / "prediction.json").read_text())["fitted_workers"] == 2
    assert "strong scaling, predicted past 2" in (study / "prediction.svg").read_text()


@pytest.mark.parametrize("option", ["--rate 10gbit", "--compute-ms 3", "--parameters 9", "--rounds 4"])
def test_what_only_a_study_of_links_can_answer_is_refused(study: Path, option: str) -> None:
    argv = ["--study", study.name, "--results", str(study.parent), *option.split()]
    with pytest.raises(JobError, match=f"^{option.split()[0]} is for a study of `harness experiment scaling`"):
        CliRunner().invoke(predict, argv, catch_exceptions=False)


def test_a_study_of_one_number_of_workers_is_refused_in_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "s", Job(backend="ddp", slots=2, preset="tiny"))
    with pytest.raises(JobError, match="no engine has timed runs on 1 and on 2 workers"):
        build(summarize_study(tmp_path / "s"), largest=8)
