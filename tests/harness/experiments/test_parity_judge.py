"""Parity's judgement: planted differences are found and named, controls tell rounding from anything else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.experiments.parity.cause import Control
from harness.experiments.parity.judge import cause_of, judge
from harness.experiments.parity.report import markdown, write_study
from harness.experiments.parity.run import JOB_FILE, _kept
from harness.experiments.trainings.cells import Cell, cells_of, parse_engine, unpack, worker_argv, write_told
from harness.job.declaration import Job, JobError
from harness.publish.experiment_headlines import headline_of

JOB = Job(preset="tiny")
CELL = Cell(backend="ddp", workers=2, accumulation=2)
ROUNDING = Control(parts=4, fp32=1.1e-5, fp64=3e-15, kink_step=7, kinks=2, before=1e-7, after=1.1e-5)


def write(out: Path, cell: Cell, weights: torch.Tensor, *, engine: dict | None = None, skipped: int = -1) -> None:
    save_file({"w": weights}, out / f"{cell.name}.safetensors")
    rows = [{"step": step, "loss": 1.0, "skipped": step == skipped} for step in range(3)]
    (out / f"{cell.name}.json").write_text(json.dumps({"rows": rows, "engine": engine or {}}))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    start, end = torch.zeros(4) + 1.0, torch.ones(4) * 2.0
    save_file({"w": start}, tmp_path / "start.safetensors")
    for precision in ("fp32", "bf16", "fp16"):
        cell = replace(CELL, precision=precision)
        write(tmp_path, cell.reference(), end)
        write(tmp_path, cell.same_split(), end * (1 + 2e-5))
    return tmp_path


def test_a_cell_is_held_to_its_bound(out: Path) -> None:
    for scale, status in ((1 + 5e-6, "equal"), (1 + 2e-5, "differs")):
        write(out, CELL, torch.ones(4) * 2.0 * scale)
        assert judge(CELL, out, 3, {}).status == status


def test_rounding_is_a_cause_only_where_a_control_shows_it(out: Path) -> None:
    write(out, CELL, torch.ones(4) * 2.0 * (1 + 4e-5))  # unlike the whole and the split single process
    verdict = judge(CELL, out, 3, {})
    assert verdict.same_split == pytest.approx(2e-5, rel=0.05)
    assert cause_of(verdict, out) == ("", False)
    text, shown = cause_of(verdict, out, ROUNDING)
    assert shown
    assert "in 4 parts departs from the one that does not by 1.1e-05 in fp32 and 3e-15 in fp64: rounding" in text
    assert "at step 7 it puts 2 units of the prompt learner (ReLU, max-pool) on the other side" in text
    text, shown = cause_of(verdict, out, replace(ROUNDING, fp64=1e-6))
    assert not shown
    assert "not rounding" in text


def test_like_the_single_process_that_splits_alike(out: Path) -> None:
    write(out, CELL, torch.ones(4) * 2.0 * (1 + 2e-5))
    text, shown = cause_of(judge(CELL, out, 3, {}), out)
    assert shown
    assert "splits its batches into 4 parts" in text


def test_half_precision_that_only_the_split_explains(out: Path) -> None:
    cell = replace(CELL, precision="fp16")  # bound 2^-11 sqrt(3) = 8.5e-4 of the update, which is 1
    write(out, cell.same_split(), torch.ones(4) * 2.005)
    write(out, cell, torch.ones(4) * 2.0055)
    text, shown = cause_of(judge(cell, out, 3, {}), out)
    assert shown
    assert "departs from the one that does not by 5.0e-03 of the update in fp16" in text
    assert "from that single process by 5.0e-04 only" in text
    write(out, cell, torch.ones(4) * 2.01)  # as far from the one that splits alike
    assert cause_of(judge(cell, out, 3, {}), out) == ("", False)


def test_an_engines_departure_is_its_cause_but_not_of_another_skipped_step(out: Path) -> None:
    cell = replace(CELL, precision="bf16")
    write(out, cell, torch.ones(4) * 2.2, engine={"departures": ["rounds elsewhere (linear.py)"]})
    assert cause_of(judge(cell, out, 3, {}), out) == ("rounds elsewhere (linear.py)", True)
    cell = replace(CELL, precision="fp16")
    write(out, cell, torch.ones(4) * 2.2, engine={"departures": ["rounds elsewhere"]}, skipped=1)
    text, shown = cause_of(judge(cell, out, 3, {}), out)
    assert not shown
    assert "skipped steps [1], the single process []" in text


def test_native_precision_names_its_departures(out: Path) -> None:
    cell = replace(CELL, precision="bf16", precision_mode="native")
    write(out, cell, torch.ones(4) * 2.2, engine={"gather_dtype": "bf16"})
    text, shown = cause_of(judge(cell, out, 3, {}), out)
    assert shown
    assert "weights are gathered in bf16" in text


def test_what_is_not_finite_is_not_equal(out: Path) -> None:
    nan = torch.full((4,), float("nan"))
    for place, extra in ((CELL, nan), (CELL.reference(), torch.ones(4)), (CELL.same_split(), torch.ones(4))):
        save_file({"a": torch.ones(4) * 2.0, "b": extra}, out / f"{place.name}.safetensors")
    save_file({"a": torch.ones(4), "b": torch.zeros(4)}, out / "start.safetensors")
    rows = {"rows": [{"step": step, "loss": 1.0, "skipped": False} for step in range(3)], "engine": {}}
    (out / f"{CELL.name}.json").write_text(json.dumps(rows))
    verdict = judge(CELL, out, 3, {})
    assert (verdict.status, verdict.tensor) == ("differs", "b")


def test_a_loss_that_one_of_two_lost_is_a_difference(out: Path) -> None:
    write(out, CELL, torch.ones(4) * 2.0)
    assert judge(CELL, out, 3, {}).status == "equal"
    told = json.loads((out / f"{CELL.name}.json").read_text())
    told["rows"][1]["loss"] = None
    (out / f"{CELL.name}.json").write_text(json.dumps(told))
    verdict = judge(CELL, out, 3, {})
    assert (verdict.status, verdict.loss_difference) == ("differs", float("inf"))


def test_refused_and_failed_cells_are_filled(out: Path) -> None:
    (out / f"{CELL.name}.json").write_text(json.dumps({"refused": "no fp16 on this processor"}))
    verdict = judge(CELL, out, 3, {})
    assert cause_of(verdict, out) == ("the engine refuses it: no fp16 on this processor", True)
    gone = replace(CELL, workers=4)
    verdict = judge(gone, out, 3, {gone: "rank 3 died"})
    assert (verdict.status, *cause_of(verdict, out)) == ("failed", "rank 3 died", False)


def test_the_table_numbers_causes_and_the_index_counts_them(out: Path, tmp_path: Path) -> None:
    write(out, CELL, torch.ones(4) * 2.0 * (1 + 4e-5))
    verdict = judge(CELL, out, 3, {})
    cause, shown = cause_of(verdict, out, ROUNDING)
    verdicts = [replace(verdict, cause=cause, explained=shown)]
    text = markdown(verdicts, JOB)
    assert "differs [1] |" in text
    assert f"- [1] {cause}" in text
    write_study(verdicts, JOB, tmp_path / "parity")
    found = headline_of(tmp_path / "parity")
    assert found is not None
    told = "0 of 1 judged cells equal the single process; of the other 1, 1 have their cause shown. ("
    assert found.sentence.startswith(told)


def test_engines_are_written_with_stage_and_settings() -> None:
    found = parse_engine("deepspeed:3+memory_efficient_linear=false")
    settings = (("memory_efficient_linear", False),)
    assert found == {"backend": "deepspeed", "zero_stage": 3, "settings": settings, "changes": ()}
    cell = Cell(**found)
    assert cell.engine == "deepspeed ZeRO-3 (memory_efficient_linear=false)"
    assert cell.name == "deepspeed-z3-memory_efficient_linear-False-w1-a1-clip-fp32"
    assert unpack(worker_argv("m", JOB, [cell], Path("o"))[3])[1] == [cell]
    for text in ("ddp:2", "deepspeed:x", "ddp+a=1"):
        with pytest.raises(JobError, match="write"):
            parse_engine(text)


def test_fp32_knows_one_mode() -> None:
    made = cells_of(["ddp"], [1, 2], [1], [True], ["fp32", "bf16"], ["matched", "native"])
    assert [(cell.precision, cell.precision_mode) for cell in made] == 2 * [
        ("fp32", "matched"),
        ("bf16", "matched"),
        ("bf16", "native"),
    ]


def test_what_a_kill_cut_off_is_trained_again(tmp_path: Path) -> None:
    (tmp_path / JOB_FILE).write_text(json.dumps(JOB.to_dict()))
    other = Cell(backend="horovod", workers=2)
    write_told(tmp_path, CELL, {"rows": []})
    (tmp_path / f"{other.name}.json").write_text('{"rows": [{"st')
    assert _kept(JOB, tmp_path) == {CELL.name}
    assert _kept(JOB.with_(time_limit_s=60), tmp_path) == {CELL.name}
    (tmp_path / JOB_FILE).write_text("{")
    with pytest.raises(JobError, match="not valid JSON"):
        _kept(JOB, tmp_path)
